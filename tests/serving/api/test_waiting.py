import asyncio
import time

import numpy as np
import pytest
from starlette.requests import ClientDisconnect, Request

from serving.api.errors import RequestError
from serving.api.waiting import await_for_client
from serving.inference.batching import Batcher
from tests.support.paused_model import PausedModel, image, wait_until_async


def test_a_disconnect_takes_the_image_out_of_the_queue() -> None:
    """Only the image of the client that disconnected leaves the queue; the other client gets its answer."""

    async def scenario() -> None:
        gone = asyncio.Event()

        async def receive() -> dict[str, str]:
            await gone.wait()
            return {"type": "http.disconnect"}

        request = Request({"type": "http", "headers": []}, receive)
        model = PausedModel()
        batcher = Batcher(model, max_batch=1)
        first = asyncio.create_task(batcher.submit(image(0)))
        await wait_until_async(lambda: model.batches)
        leaves = asyncio.create_task(await_for_client(request, batcher.submit(image(1)), 60))
        stays = asyncio.create_task(batcher.submit(image(2)))
        await asyncio.sleep(0.2)
        assert not leaves.done()
        gone.set()
        with pytest.raises(ClientDisconnect):
            await leaves
        model.resume.set()
        assert int((await stays)[0]) == 2
        await first
        assert model.batches == [1, 1]

    asyncio.run(scenario())


@pytest.mark.parametrize("seconds", [0.01, 0.1])
def test_a_deadline_takes_the_image_out_of_the_queue(seconds: float) -> None:
    async def receive() -> dict[str, str]:
        await asyncio.Event().wait()
        raise AssertionError("the client stays")

    async def scenario() -> None:
        model = PausedModel()
        batcher = Batcher(model, max_batch=1)
        first = asyncio.create_task(batcher.submit(image(0)))
        await wait_until_async(lambda: model.batches)
        start = time.monotonic()
        with pytest.raises(RequestError, match=f"no answer within {seconds:g} s") as refused:
            await await_for_client(Request({"type": "http", "headers": []}, receive), batcher.submit(image(1)), seconds)
        assert (refused.value.status, refused.value.code) == (504, "deadline_exceeded")
        assert seconds <= time.monotonic() - start <= seconds + 10
        model.resume.set()
        await first
        assert model.batches == [1]

    asyncio.run(scenario())


def test_an_answer_in_time_is_the_answer() -> None:
    async def receive() -> dict[str, str]:
        raise AssertionError("a quick result needs no look at the connection")

    async def scenario() -> np.ndarray:
        batcher = Batcher(lambda images: images[:, 0, 0, :1].astype(np.float32), max_batch=1)
        return await await_for_client(Request({"type": "http", "headers": []}, receive), batcher.submit(image(7)), 60)

    assert asyncio.run(scenario())[0] == 7
