"""An event-driven micro-batcher: a request waits only while a batch is running.

The images that are queued when the model becomes free form the next batch, at most `max_batch` of them. There is no
timer and no polling: an idle server does nothing, and a single request never waits for another one.

Background images run a few at a time while no other image waits, and a few beside others in a batch. They progress
under any load that leaves room, and delay other images little.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from time import perf_counter
from typing import Generic, TypeVar

import numpy as np

from serving.contract.decode import Pixels

BACKGROUND_ALONE = 2
"""Background images in a batch of their own: an image that arrives meanwhile waits for no more than these."""
BACKGROUND_BESIDE = 4
"""In a batch with other images there is one background image for this number of them."""


Row = TypeVar("Row")


class Overloaded(RuntimeError):
    """There is no room for this request now; the client may retry shortly."""


@dataclass(eq=False)
class _Waiting(Generic[Row]):
    pixels: Pixels
    answer: asyncio.Future[Row]
    background: bool
    since: float = field(default_factory=perf_counter)
    batch: tuple[float, float] = (0.0, 0.0)
    """When its batch began and ended, in seconds of `perf_counter`."""


class Batcher(Generic[Row]):
    """Collect single images into batches for `predict`, which runs in one thread of its own.

    `predict` maps uint8 `[batch, height, width, channels]` to one row an image. After each batch
    `observe` gets the seconds that each image has waited (background images left out), the seconds that the batch
    took, and its number of images. With `inline`, the event loop itself runs the model on a single image. Before
    every batch the event loop makes `turns` turns, in which it decodes arrived images and sends answers: useful
    where the model and the event loop share one core.
    """

    def __init__(
        self,
        predict: Callable[[np.ndarray], Iterable[Row]],
        *,
        max_batch: int,
        inline: bool = False,
        turns: int = 0,
        observe: Callable[[Sequence[float], float, int], None] = lambda waited, took, images: None,
    ) -> None:
        self._predict = predict
        self._max_batch = max_batch
        self._inline = inline
        self._turns = turns
        self._observe = observe
        self._queue: deque[_Waiting[Row]] = deque()
        self._background: deque[_Waiting[Row]] = deque()
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="model")
        self._running: asyncio.Task[None] | None = None
        self.failures = 0
        """Consecutive failed runs of the model; 0 after a run that succeeds."""
        self._began: float | None = None

    @property
    def running_s(self) -> float:
        """Seconds since the running batch began; 0 while none runs."""
        return 0.0 if self._began is None else perf_counter() - self._began

    async def submit(
        self,
        pixels: Pixels,
        *,
        background: bool = False,
        trace: Callable[[float, float, float], None] | None = None,
    ) -> Row:
        """The row of one image; a background image waits behind the others.

        The caller bounds the number of images. Cancelling the call takes the image out of the queue. `trace` gets, in
        the caller's context, when the image began to wait, and when its batch began and ended. Raises what `predict`
        raises.
        """
        queue = self._background if background else self._queue
        waiting: _Waiting[Row] = _Waiting(pixels, asyncio.get_running_loop().create_future(), background)
        queue.append(waiting)
        if self._running is None:
            self._running = asyncio.create_task(self._run())
        try:
            row = await waiting.answer
        except asyncio.CancelledError:
            if waiting in queue:
                queue.remove(waiting)
            raise
        if trace is not None:
            trace(waiting.since, *waiting.batch)
        return row

    async def _run(self) -> None:
        """Answer batch after batch until no image waits."""
        try:
            while self._queue or self._background:
                for _ in range(self._turns):
                    await asyncio.sleep(0)
                if batch := self._next_batch():  # empty when every waiting call was cancelled meanwhile
                    await self._answer(batch)
        finally:
            self._running = None

    def _next_batch(self) -> list[_Waiting[Row]]:
        batch = [self._queue.popleft() for _ in range(min(self._max_batch, len(self._queue)))]
        share = len(batch) // BACKGROUND_BESIDE if batch else BACKGROUND_ALONE
        share = min(share, self._max_batch - len(batch), len(self._background))
        return batch + [self._background.popleft() for _ in range(share)]

    async def _answer(self, batch: list[_Waiting[Row]]) -> None:
        start = self._began = perf_counter()
        try:
            images = np.stack([waiting.pixels for waiting in batch])
            rows = await self._run_model(images)
        except Exception as error:  # what the model raises belongs to the callers, not to the batcher
            self.failures += 1
            for waiting in batch:
                if not waiting.answer.done():
                    waiting.answer.set_exception(error)
            return
        finally:
            self._began = None
        self.failures = 0
        waited = [start - waiting.since for waiting in batch if not waiting.background]
        end = perf_counter()
        self._observe(waited, end - start, len(batch))
        for waiting, row in zip(batch, rows, strict=True):
            waiting.batch = start, end
            if not waiting.answer.done():
                waiting.answer.set_result(row)

    async def _run_model(self, images: np.ndarray) -> Iterable[Row]:
        if self._inline and len(images) == 1:
            return self._predict(images)
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._predict, images)
