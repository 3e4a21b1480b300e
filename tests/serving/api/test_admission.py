import asyncio
import time

import numpy as np
import pytest

from serving.api.admission import Admission, Overloaded
from serving.inference.batching import Batcher

SERVICE_S = 0.04


def model(images: np.ndarray) -> np.ndarray:
    time.sleep(SERVICE_S * len(images))
    return np.zeros((len(images), 2), np.float32)


def admission(**limits: int) -> Admission:
    return Admission(**{"max_images": 16, "max_bytes": 1000} | limits)


def test_in_a_lasting_overload_the_wait_is_bounded_and_after_it_nobody_is_refused() -> None:
    """Ten times capacity, open loop, then seven tenths of it soon after."""
    door, batcher = admission(), Batcher(model, max_batch=8)
    accepted: list[float] = []
    refused: list[float] = []

    async def one() -> None:
        start = time.perf_counter()
        try:
            with door.place() as place:
                place.enter(1)
                await batcher.submit(np.zeros((8, 8, 3), np.uint8))
        except Overloaded:
            refused.append(time.perf_counter() - start)
        else:
            accepted.append(time.perf_counter() - start)

    async def come(load: float, seconds: float) -> list[asyncio.Task[None]]:
        tasks = []
        until = time.perf_counter() + seconds
        while time.perf_counter() < until:
            tasks.append(asyncio.create_task(one()))
            await asyncio.sleep(SERVICE_S / load)
        return tasks

    async def scenario() -> None:
        tasks = await come(10, 2)
        assert len(refused) > 2 * len(accepted) > 2 / SERVICE_S / 2, "the model is kept busy, and no more comes in"
        assert np.quantile(refused, 0.99) <= 0.1
        await asyncio.sleep(8 * SERVICE_S)  # half of what waits is answered
        refused.clear()
        tasks += await come(0.7, 2)
        await asyncio.gather(*tasks)
        assert not refused

    asyncio.run(scenario())
    assert max(accepted) <= 1.5 * 16 * SERVICE_S, "sixteen are inside: the longest wait is for so many"


def test_as_many_clients_as_may_be_inside_are_never_refused_and_after_an_overload_neither() -> None:
    """Closed loop: each asks again when it has its answer, so there is always a queue, and it never grows."""
    door, batcher = admission(), Batcher(lambda images: np.zeros((len(images), 2), np.float32), max_batch=8)
    heard: list[bool] = []

    async def ask() -> bool:
        try:
            with door.place() as place:
                place.enter(1)
                await batcher.submit(np.zeros((8, 8, 3), np.uint8))
        except Overloaded:
            return False
        return True

    async def client() -> None:
        for _ in range(100):
            heard.append(await ask())

    async def scenario() -> None:
        await asyncio.gather(*(client() for _ in range(16)))
        assert all(heard)
        assert not all(await asyncio.gather(*(ask() for _ in range(17))))
        await asyncio.sleep(1)
        heard.clear()
        await asyncio.gather(*(client() for _ in range(16)))

    asyncio.run(scenario())
    assert heard == [True] * 1600


def test_images_and_bytes_inside_are_bounded_and_given_back() -> None:
    door = admission(max_images=3)
    with door.place() as place:
        place.enter(3)
        with pytest.raises(Overloaded):
            door.place().enter(1)
    with door.place() as place:
        place.hold(16_000)
        with pytest.raises(Overloaded, match="16,000 bytes"):
            door.place().hold(1)
    with door.place() as place:
        place.hold(16_000)
        place.enter(3)


def test_whoever_fails_gives_the_place_back_too() -> None:
    door = admission(max_images=1)

    def fail() -> None:
        with door.place() as place:
            place.enter(1)
            raise ValueError("bad")

    with pytest.raises(ValueError, match="bad"):
        fail()
    door.place().enter(1)
