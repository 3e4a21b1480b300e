import asyncio

import numpy as np
import pytest
from starlette.requests import ClientDisconnect, Request

from serving.batching import Batcher
from serving.upload import while_connected
from tests.test_batching import Gate, image, until


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
        leaves = asyncio.create_task(while_connected(request, batcher.submit(image(1))))
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


def test_an_answer_in_time_is_the_answer() -> None:
    async def receive() -> dict[str, str]:
        raise AssertionError("nobody need look")

    async def scenario() -> np.ndarray:
        batcher = Batcher(lambda images: images[:, 0, 0, :1].astype(np.float32), max_batch=1)
        return await while_connected(Request({"type": "http", "headers": []}, receive), batcher.submit(image(7)))

    assert asyncio.run(scenario())[0] == 7
