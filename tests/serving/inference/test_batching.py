import asyncio
import time

import numpy as np
import pytest

from serving.inference.batching import Batcher
from tests.support.gated_model import Gate, image, until


def test_what_queues_up_while_a_batch_runs_goes_in_together_and_each_gets_its_own_answer() -> None:
    async def scenario() -> None:
        gate = Gate()
        batcher = Batcher(gate, max_batch=8)
        first = asyncio.create_task(batcher.submit(image(0)))
        await until(lambda: gate.batches)
        others = [asyncio.create_task(batcher.submit(image(value))) for value in range(1, 21)]
        await asyncio.sleep(0.01)
        gate.open.set()
        answers = await asyncio.gather(first, *others)
        assert [int(answer[0]) for answer in answers] == list(range(21))
        assert gate.batches == [1, 8, 8, 4]

    asyncio.run(scenario())


def test_what_the_event_loop_can_still_do_goes_into_the_batch_first_and_who_goes_meanwhile_is_not_missed() -> None:
    async def scenario() -> None:
        gate = Gate()
        gate.open.set()
        batcher = Batcher(gate, max_batch=8, turns=3)

        async def comes(value: int) -> int:
            for _ in range(value):
                await asyncio.sleep(0)
            return int((await batcher.submit(image(value)))[0])

        assert await asyncio.gather(*map(comes, range(4))) == [0, 1, 2, 3]
        assert gate.batches == [4]
        gone = asyncio.create_task(batcher.submit(image(4)))
        await asyncio.sleep(0)
        gone.cancel()
        assert await comes(5) == 5
        assert gone.cancelled()
        assert gate.batches == [4, 1]

    asyncio.run(scenario())


def test_a_lone_image_is_not_held_back() -> None:
    async def scenario() -> float:
        batcher = Batcher(lambda images: np.zeros((len(images), 2), np.float32), max_batch=8)
        await batcher.submit(image(0))
        start = time.perf_counter()
        for _ in range(100):
            await batcher.submit(image(0))
        return (time.perf_counter() - start) / 100

    assert asyncio.run(scenario()) < 0.005


def test_whoever_goes_away_leaves_the_queue() -> None:
    async def scenario() -> None:
        gate = Gate()
        batcher = Batcher(gate, max_batch=8)
        first = asyncio.create_task(batcher.submit(image(0)))
        await until(lambda: gate.batches)
        others = [asyncio.create_task(batcher.submit(image(value))) for value in range(1, 6)]
        await asyncio.sleep(0)
        for gone in others[:4]:
            gone.cancel()
        await asyncio.sleep(0)
        gate.open.set()
        assert int((await others[4])[0]) == 5
        await first
        assert gate.batches == [1, 1]

    asyncio.run(scenario())


def test_what_is_in_the_background_runs_beside_and_after_the_others_a_few_at_a_time() -> None:
    async def scenario() -> None:
        gate = Gate()
        batcher = Batcher(gate, max_batch=8)
        first = asyncio.create_task(batcher.submit(image(0)))
        await until(lambda: gate.batches)
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
        gate.open.set()
        await asyncio.gather(first, *behind[:10], *before)
        assert gate.batches == [1, 8, 6 + 1, 2, 2, 2, 2, 1]
        assert finished == [*range(1, 15), *range(100, 110)], "no prediction waits for what came before it"

    asyncio.run(scenario())


def test_a_model_that_raises_fails_its_own_batch_and_no_other() -> None:
    def moody(images: np.ndarray) -> np.ndarray:
        if images.max() > 100:
            raise RuntimeError("too bright")
        return images[:, 0, 0].astype(np.float32)

    async def scenario() -> None:
        batcher = Batcher(moody, max_batch=1)
        with pytest.raises(RuntimeError, match="too bright"):
            await batcher.submit(image(200))
        assert (await batcher.submit(image(7)))[0] == 7

    asyncio.run(scenario())


def test_waiting_and_running_times_are_observed() -> None:
    observed: list[tuple[int, float, int]] = []

    async def scenario() -> None:
        batcher = Batcher(
            lambda images: (time.sleep(0.02), np.zeros((len(images), 2)))[1],
            max_batch=4,
            observe=lambda waited, took, images: observed.append((len(waited), took, images)),
        )
        await asyncio.gather(*(batcher.submit(image(0), background=number == 3) for number in range(4)))

    asyncio.run(scenario())
    assert sum(waited for waited, _, _ in observed) == 3, "of what waits in the background the times are not kept"
    assert sum(images for _, _, images in observed) == 4
    assert all(took >= 0.02 for _, took, _ in observed)
