import asyncio
import time

import numpy as np
import pytest
from starlette.requests import ClientDisconnect, Request

from serving.api.errors import RequestError
from serving.api.waiting import while_awaited
from serving.inference.batching import Batcher
from tests.support.gated_model import Gate, image, until


def test_nobody_works_for_a_client_that_has_gone() -> None:
    """The image of whoever closes the connection leaves the queue; one whose client stays is answered."""

    async def scenario() -> None:
        gone = asyncio.Event()

        async def receive() -> dict[str, str]:
            await gone.wait()
            return {"type": "http.disconnect"}

        request = Request({"type": "http", "headers": []}, receive)
        gate = Gate()
        batcher = Batcher(gate, max_batch=1)
        first = asyncio.create_task(batcher.submit(image(0)))
        await until(lambda: gate.batches)
        leaves = asyncio.create_task(while_awaited(request, batcher.submit(image(1)), 60))
        stays = asyncio.create_task(batcher.submit(image(2)))
        await asyncio.sleep(0.2)
        assert not leaves.done()
        gone.set()
        with pytest.raises(ClientDisconnect):
            await leaves
        gate.open.set()
        assert int((await stays)[0]) == 2
        await first
        assert gate.batches == [1, 1]

    asyncio.run(scenario())


@pytest.mark.parametrize("seconds", [0.01, 0.1])
def test_nobody_works_for_a_client_who_has_been_told_that_it_takes_too_long(seconds: float) -> None:
    async def receive() -> dict[str, str]:
        await asyncio.Event().wait()
        raise AssertionError("the client stays")

    async def scenario() -> None:
        gate = Gate()
        batcher = Batcher(gate, max_batch=1)
        first = asyncio.create_task(batcher.submit(image(0)))
        await until(lambda: gate.batches)
        start = time.monotonic()
        with pytest.raises(RequestError, match=f"no answer within {seconds:g} s") as told:
            await while_awaited(Request({"type": "http", "headers": []}, receive), batcher.submit(image(1)), seconds)
        assert (told.value.status, told.value.code) == (504, "deadline_exceeded")
        assert seconds <= time.monotonic() - start <= seconds + 0.2
        gate.open.set()
        await first
        assert gate.batches == [1]

    asyncio.run(scenario())


def test_an_answer_in_time_is_the_answer() -> None:
    async def receive() -> dict[str, str]:
        raise AssertionError("nobody need look")

    async def scenario() -> np.ndarray:
        batcher = Batcher(lambda images: images[:, 0, 0, :1].astype(np.float32), max_batch=1)
        return await while_awaited(Request({"type": "http", "headers": []}, receive), batcher.submit(image(7)), 60)

    assert asyncio.run(scenario())[0] == 7
