import asyncio
import time

import numpy as np
import pytest

from serving.admission import Admission, Overloaded
from serving.batching import Batcher

SERVICE_S = 0.04


def model(images: np.ndarray) -> np.ndarray:
    time.sleep(SERVICE_S * len(images))
    return np.zeros((len(images), 2), np.float32)


def admission(**limits: float) -> Admission:
    door = Admission(**{"max_images": 16, "max_bytes": 1000, "max_slowdown": 2.0} | limits)
    door.expect(SERVICE_S)
    return door


def test_in_a_lasting_overload_whoever_is_let_in_takes_about_twice_as_long_as_alone() -> None:
    """Ten times capacity, open loop, after the burst has been answered; the others hear at once."""
    door, batcher = admission(), Batcher(model, max_batch=8)
    accepted: list[float] = []
    refused: list[float] = []

    async def one(*, counts: bool) -> None:
        start = time.perf_counter()
        try:
            with door.place() as place:
                place.enter(1)
                await batcher.submit(np.zeros((8, 8, 3), np.uint8))
        except Overloaded:
            (refused if counts else []).append(time.perf_counter() - start)
        else:
            (accepted if counts else []).append(time.perf_counter() - start)

    async def scenario() -> None:
        start = time.perf_counter()
        tasks = []
        while (passed := time.perf_counter() - start) < 6:
            tasks.append(asyncio.create_task(one(counts=passed > 2)))  # after the burst
            await asyncio.sleep(SERVICE_S / 10)
        await asyncio.gather(*tasks)

    asyncio.run(scenario())
    assert len(accepted) > 4 / SERVICE_S / 3, "the model is kept busy"
    assert len(refused) > 2 * len(accepted)
    assert np.quantile(accepted, 0.95) <= 2.5 * SERVICE_S
    assert np.quantile(refused, 0.99) <= 0.1


def test_as_many_clients_as_may_be_inside_are_never_refused_and_after_an_overload_neither() -> None:
    """Closed loop: each asks again when it has its answer, so there is always a queue, and it never grows."""
    door, batcher = admission(), Batcher(lambda images: np.zeros((len(images), 2), np.float32), max_batch=8)
    door.expect(0.0001)
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
