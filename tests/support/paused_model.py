"""A model that runs only when a test says so, and images that each have a value of their own."""

import asyncio
import threading
from collections.abc import Callable

import numpy as np


def image(value: int) -> np.ndarray:
    return np.full((8, 8, 3), value, np.uint8)


class PausedModel:
    """Runs once `resume` is set; answers each image with the image's own value and records the sizes of its batches."""

    def __init__(self) -> None:
        self.resume = threading.Event()
        self.batches: list[int] = []

    def __call__(self, images: np.ndarray) -> np.ndarray:
        self.batches.append(len(images))
        assert self.resume.wait(10)
        return images[:, 0, 0, :1].astype(np.float32)


async def wait_until_async(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.001)
