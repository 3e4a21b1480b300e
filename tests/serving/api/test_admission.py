import asyncio
import time
from typing import Any

import numpy as np
import pytest

from serving.api.admission import Admission
from serving.inference.batching import Batcher, Overloaded

SERVICE_S = 0.04
MAX_IMAGES = 16
MAX_BATCH = 8


class SlowModel:
    """Takes SERVICE_S for each image and counts the images."""

    def __init__(self) -> None:
        self.images = 0

    def __call__(self, images: np.ndarray) -> np.ndarray:
        time.sleep(SERVICE_S * len(images))
        self.images += len(images)
        return np.zeros((len(images), 2), np.float32)


def admission(**limits: Any) -> Admission:
    return Admission(**({"max_images": MAX_IMAGES, "max_bytes": 1000} | limits))


def test_an_overload_bounds_the_wait_and_ends_with_its_load() -> None:
    """Ten times capacity, open loop, then seven tenths of it soon after. A wait is counted in images of the model."""
    model = SlowModel()
    limit, batcher = admission(), Batcher(model, max_batch=MAX_BATCH)
    accepted: list[int] = []
    refused: list[int] = []

    async def one() -> None:
        before = model.images
        try:
            with limit.reserve() as reservation:
                reservation.add_images(1)
                await batcher.submit(np.zeros((8, 8, 3), np.uint8))
        except Overloaded:
            refused.append(model.images - before)
        else:
            accepted.append(model.images - before)

    async def arrive(load: float, seconds: float) -> list[asyncio.Task[None]]:
        tasks = []
        until = time.perf_counter() + seconds
        while time.perf_counter() < until:
            tasks.append(asyncio.create_task(one()))
            await asyncio.sleep(SERVICE_S / load)
        return tasks

    async def scenario() -> None:
        tasks = await arrive(10, 2)
        assert len(refused) > 2 * len(accepted) > 2 / SERVICE_S / 2, "the model is kept busy, and the rest is refused"
        # The model's thread may end a batch while an arrival is looked at, but not while hundreds are.
        assert sum(map(bool, refused)) <= len(refused) / 100, "a refusal waits for no image"
        await asyncio.sleep(8 * SERVICE_S)  # half of the admitted images are answered
        refused.clear()
        tasks += await arrive(0.7, 2)
        await asyncio.gather(*tasks)
        assert not refused

    asyncio.run(scenario())
    # An answer may be delivered while the next batch runs, and is counted with it.
    assert max(accepted) <= MAX_IMAGES + MAX_BATCH


def test_clients_up_to_the_limit_are_never_refused() -> None:
    """Closed loop: each client asks again after its answer, so there is always a queue, and it never grows."""
    limit, batcher = admission(), Batcher(lambda images: np.zeros((len(images), 2), np.float32), max_batch=8)
    admitted: list[bool] = []

    async def ask() -> bool:
        try:
            with limit.reserve() as reservation:
                reservation.add_images(1)
                await batcher.submit(np.zeros((8, 8, 3), np.uint8))
        except Overloaded:
            return False
        return True

    async def client() -> None:
        for _ in range(100):
            admitted.append(await ask())

    async def scenario() -> None:
        await asyncio.gather(*(client() for _ in range(MAX_IMAGES)))
        assert all(admitted)
        assert not all(await asyncio.gather(*(ask() for _ in range(MAX_IMAGES + 1)))), "one too many"
        admitted.clear()
        await asyncio.gather(*(client() for _ in range(MAX_IMAGES)))

    asyncio.run(scenario())
    assert admitted == [True] * 100 * MAX_IMAGES


def test_images_and_bytes_are_bounded_and_released() -> None:
    limit = admission(max_images=3)
    with limit.reserve() as reservation:
        reservation.add_images(3)
        with pytest.raises(Overloaded):
            limit.reserve().add_images(1)
    with limit.reserve() as reservation:
        reservation.add_bytes(16_000)
        with pytest.raises(Overloaded, match="16,000 bytes"):
            limit.reserve().add_bytes(1)
    with limit.reserve() as reservation:
        reservation.add_bytes(16_000)
        reservation.add_images(3)


def test_bodies_of_several_images_take_half_of_the_memory() -> None:
    limit = admission()
    with limit.reserve(batch=True) as reservation, limit.reserve() as other:
        reservation.add_bytes(8_000)
        with pytest.raises(Overloaded, match="8,000 bytes"):
            limit.reserve(batch=True).add_bytes(1)
        assert not limit.crowded
        other.add_bytes(1)
        assert limit.crowded
    limit.reserve(batch=True).add_bytes(8_000)


def test_a_request_that_fails_releases_its_share() -> None:
    limit = admission(max_images=1)

    def fail() -> None:
        with limit.reserve() as reservation:
            reservation.add_images(1)
            raise ValueError("bad")

    with pytest.raises(ValueError, match="bad"):
        fail()
    limit.reserve().add_images(1)
