"""An event-driven micro-batcher: a request waits only while a batch is running.

Whatever has queued up by the time the model is free goes in together, at most `max_batch` images. There is no timer
and no polling: an idle server does nothing, and a lone request is never held back to see whether another comes.

Images in the background run a few at a time while nobody else waits, and in small number beside others: they get on
under any load that leaves room, and hardly hold anybody up.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from time import perf_counter

import numpy as np

from serving.contract.decode import Pixels

BACKGROUND_ALONE = 2
"""Images in the background a run, when nobody else waits: whoever comes meanwhile waits for no more than these."""
BACKGROUND_BESIDE = 4
"""In a run with others there is one image in the background for so many of them."""


@dataclass(eq=False)
class _Waiting:
    pixels: Pixels
    answer: asyncio.Future[np.ndarray]
    background: bool
    since: float = field(default_factory=perf_counter)


class Batcher:
    """Collect single images into batches for `predict`, which runs in one thread of its own.

    `predict` maps uint8 `[batch, height, width, channels]` to one row of probabilities an image. `observe` is told
    the seconds each image of a batch has waited (those in the background left out), the seconds the batch took, and
    how many images it had. `inline` lets the event loop itself run the model on a lone image. Before every batch
    the event loop makes `turns` turns, in which it decodes what has come in and sends what has been answered: worth
    it where the model would only take the core away from that.
    """

    def __init__(
        self,
        predict: Callable[[np.ndarray], np.ndarray],
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
        self._queue: deque[_Waiting] = deque()
        self._background: deque[_Waiting] = deque()
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="model")
        self._running: asyncio.Task[None] | None = None
        self.failures = 0
        """Runs of the model that failed since one did not."""

    async def submit(self, pixels: Pixels, *, background: bool = False) -> np.ndarray:
        """Probabilities float32 `[classes]` of one image; in the background it waits behind those that are not.

        Who submits images bounds their number. Cancelling the call takes the image out: nobody works for a client
        that has gone.
        """
        queue = self._background if background else self._queue
        waiting = _Waiting(pixels, asyncio.get_running_loop().create_future(), background)
        queue.append(waiting)
        if self._running is None:
            self._running = asyncio.create_task(self._run())
        try:
            return await waiting.answer
        except asyncio.CancelledError:
            if waiting in queue:
                queue.remove(waiting)
            raise

    async def _run(self) -> None:
        """Answer batch after batch until nobody waits."""
        try:
            while self._queue or self._background:
                for _ in range(self._turns):
                    await asyncio.sleep(0)
                if batch := self._next_batch():  # those who waited may have gone meanwhile
                    await self._answer(batch)
        finally:
            self._running = None

    def _next_batch(self) -> list[_Waiting]:
        batch = [self._queue.popleft() for _ in range(min(self._max_batch, len(self._queue)))]
        share = len(batch) // BACKGROUND_BESIDE if batch else BACKGROUND_ALONE
        share = min(share, self._max_batch - len(batch), len(self._background))
        return batch + [self._background.popleft() for _ in range(share)]

    async def _answer(self, batch: list[_Waiting]) -> None:
        start = perf_counter()
        try:
            images = np.stack([waiting.pixels for waiting in batch])
            rows = await self._run_model(images)
        except Exception as error:  # whatever the model raises belongs to those who asked, not to the batcher
            self.failures += 1
            for waiting in batch:
                if not waiting.answer.done():
                    waiting.answer.set_exception(error)
            return
        self.failures = 0
        waited = [start - waiting.since for waiting in batch if not waiting.background]
        self._observe(waited, perf_counter() - start, len(batch))
        for waiting, row in zip(batch, rows, strict=True):
            if not waiting.answer.done():
                waiting.answer.set_result(row)

    async def _run_model(self, images: np.ndarray) -> np.ndarray:
        if self._inline and len(images) == 1:
            return self._predict(images)
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._predict, images)
