import asyncio
import time
from collections.abc import Callable
from contextvars import Context
from typing import TypeVarTuple

import numpy as np
import pytest

from serving.inference.batching import Batcher
from tests.support.paused_model import PausedModel, image, wait_until_async


def test_images_queued_during_a_batch_form_the_next_one() -> None:
    async def scenario() -> None:
        model = PausedModel()
        batcher = Batcher(model, max_batch=8)
        first = asyncio.create_task(batcher.submit(image(0)))
        await wait_until_async(lambda: model.batches)
        others = [asyncio.create_task(batcher.submit(image(value))) for value in range(1, 21)]
        await asyncio.sleep(0.01)
        model.resume.set()
        answers = await asyncio.gather(first, *others)
        assert [int(answer[0]) for answer in answers] == list(range(21))
        assert model.batches == [1, 8, 8, 4]

    asyncio.run(scenario())


def test_the_event_loop_turns_before_each_batch() -> None:
    async def scenario() -> None:
        model = PausedModel()
        model.resume.set()
        batcher = Batcher(model, max_batch=8, turns=3)

        async def comes(value: int) -> int:
            for _ in range(value):
                await asyncio.sleep(0)
            return int((await batcher.submit(image(value)))[0])

        assert await asyncio.gather(*map(comes, range(4))) == [0, 1, 2, 3]
        assert model.batches == [4]
        gone = asyncio.create_task(batcher.submit(image(4)))
        await asyncio.sleep(0)
        gone.cancel()
        assert await comes(5) == 5
        assert gone.cancelled()
        assert model.batches == [4, 1]

    asyncio.run(scenario())


Arguments = TypeVarTuple("Arguments")


class TimerCount(asyncio.SelectorEventLoop):
    """An event loop that counts the timers that are set."""

    timers = 0

    def call_at(
        self, when: float, callback: Callable[[*Arguments], object], *args: *Arguments, context: Context | None = None
    ) -> asyncio.TimerHandle:
        self.timers += 1
        return super().call_at(when, callback, *args, context=context)


def test_a_single_image_waits_for_no_timer() -> None:
    batches: list[int] = []

    def model(images: np.ndarray) -> np.ndarray:
        batches.append(len(images))
        return np.zeros((len(images), 2), np.float32)

    async def scenario() -> None:
        batcher = Batcher(model, max_batch=8)
        for _ in range(100):
            await batcher.submit(image(0))

    with asyncio.Runner(loop_factory=TimerCount) as runner:
        runner.run(scenario())
        loop = runner.get_loop()
        assert isinstance(loop, TimerCount)
        assert loop.timers == 0
    assert batches == [1] * 100


def test_a_cancelled_image_leaves_the_queue() -> None:
    async def scenario() -> None:
        model = PausedModel()
        batcher = Batcher(model, max_batch=8)
        first = asyncio.create_task(batcher.submit(image(0)))
        await wait_until_async(lambda: model.batches)
        others = [asyncio.create_task(batcher.submit(image(value))) for value in range(1, 6)]
        await asyncio.sleep(0)
        for gone in others[:4]:
            gone.cancel()
        await asyncio.sleep(0)
        model.resume.set()
        assert int((await others[4])[0]) == 5
        await first
        assert model.batches == [1, 1]

    asyncio.run(scenario())


def test_background_images_run_beside_and_after_the_others() -> None:
    async def scenario() -> None:
        model = PausedModel()
        batcher = Batcher(model, max_batch=8)
        first = asyncio.create_task(batcher.submit(image(0)))
        await wait_until_async(lambda: model.batches)
        behind = [asyncio.create_task(batcher.submit(image(value), background=True)) for value in range(100, 120)]
        await asyncio.sleep(0)
        before = [asyncio.create_task(batcher.submit(image(value))) for value in range(1, 15)]
        await asyncio.sleep(0)
        for gone in behind[10:]:
            gone.cancel()
        await asyncio.sleep(0)
        finished: list[int] = []
        for task in [*behind[:10], *before]:
            task.add_done_callback(lambda done: finished.append(int(done.result()[0])))
        model.resume.set()
        await asyncio.gather(first, *behind[:10], *before)
        assert model.batches == [1, 8, 6 + 1, 2, 2, 2, 2, 1]
        assert finished == [*range(1, 15), *range(100, 110)], (
            "no prediction waits for background images that came earlier"
        )

    asyncio.run(scenario())


def test_the_time_of_a_run_that_has_not_ended_is_known() -> None:
    async def scenario() -> None:
        model = PausedModel()
        batcher = Batcher(model, max_batch=8)
        assert batcher.running_s == 0
        answer = asyncio.create_task(batcher.submit(image(0)))
        await wait_until_async(lambda: model.batches)
        await asyncio.sleep(0.05)
        assert 0.05 <= batcher.running_s < 30
        model.resume.set()
        await answer
        assert batcher.running_s == 0

    asyncio.run(scenario())


def test_a_model_that_raises_fails_its_own_batch_and_no_other() -> None:
    def fails_if_bright(images: np.ndarray) -> np.ndarray:
        if images.max() > 100:
            raise RuntimeError("too bright")
        return images[:, 0, 0].astype(np.float32)

    async def scenario() -> None:
        batcher = Batcher(fails_if_bright, max_batch=1)
        with pytest.raises(RuntimeError, match="too bright"):
            await batcher.submit(image(200))
        assert (await batcher.submit(image(7)))[0] == 7

    asyncio.run(scenario())


def test_waiting_and_running_times_are_observed() -> None:
    observed: list[tuple[int, float, int]] = []

    def slow(images: np.ndarray) -> np.ndarray:
        time.sleep(0.02)
        return np.zeros((len(images), 2))

    async def scenario() -> None:
        batcher = Batcher(
            slow,
            max_batch=4,
            observe=lambda waited, took, images: observed.append((len(waited), took, images)),
        )
        await asyncio.gather(*(batcher.submit(image(0), background=number == 3) for number in range(4)))

    asyncio.run(scenario())
    assert sum(waited for waited, _, _ in observed) == 3, "waiting times of background images are left out"
    assert sum(images for _, _, images in observed) == 4
    assert all(took >= 0.02 for _, took, _ in observed)
