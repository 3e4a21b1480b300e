"""From the bytes of an image to an answer: decode, wait for the model, name the class. Knows nothing of HTTP."""

import asyncio
import math
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from time import perf_counter

import numpy as np

from serving.contract import drift
from serving.contract.decode import Pixels, decode
from serving.contract.drift import Seen
from serving.contract.image_header import ImageError
from serving.contract.model import Classifier
from serving.inference.batching import Batcher
from serving.metrics import Metrics
from serving.settings import Settings

DECODERS = 2
# Up to here decoding takes about as long as handing it to a thread, and can never take long: the loop does it itself.
INLINE_BYTES = 8 * 1024
INLINE_PIXELS = 2**15
INLINE_S = 0.001
"""A model that answers one image in less does so in the event loop, if nobody else waits; a slower one would keep the
loop from refusing, and then let in whoever has waited longest."""
TURNS = 4
"""On a single core: to send the last answers, to hear what their clients ask next, to read and to decode it."""
FAILURES = 3
"""Runs of the model that fail in a row before it counts as lost."""


class InvalidOutput(RuntimeError):
    """The model gave something that is not a probability."""


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """One image's answer; `probabilities` by class and `prediction_set`, most likely first.

    `abstained` marks an answer as one for a person to decide: its confidence is below the settings' `abstain_below`.
    The prediction set holds the true class with the model card's level of confidence; None when the model has none.
    """

    label: str
    confidence: float
    abstained: bool
    prediction_set: list[str] | None
    probabilities: dict[str, float]
    model_version: str


class Predictor:
    """One opened model and its batcher, replaceable as a whole.

    Whoever holds one keeps being answered by its model; its threads end when nobody does.
    """

    def __init__(self, classifier: Classifier, settings: Settings, metrics: Metrics) -> None:
        self.card = classifier.card
        self.classifier = classifier
        self._metrics = metrics
        self._settings = settings
        self._decoders = ThreadPoolExecutor(DECODERS, thread_name_prefix="decode")
        _start_threads(self._decoders)
        lone_s = self._warm_up()
        self.batcher = Batcher(
            classifier.predict,
            max_batch=settings.max_batch,
            observe=metrics.ran,
            inline=lone_s < INLINE_S,
            turns=TURNS if len(os.sched_getaffinity(0)) == 1 else 0,
        )
        self._window = drift.Window(self.card.reference, settings.drift_window, metrics.drifted)

    @property
    def alive(self) -> bool:
        """Whether the model still runs: a GPU that is lost fails every run."""
        return self.batcher.failures < FAILURES

    async def predict(self, data: bytes, top_k: int | None = None) -> Prediction:
        """Answer one encoded image, with its `top_k` most likely classes (all when None).

        Raises ImageError, InvalidOutput. Cancelling the call takes the image out of the queue.
        """
        pixels, seen = await self._pixels(data)
        probabilities = await self.batcher.submit(pixels)
        named = self._name(probabilities, top_k)
        self._window.append(seen, probabilities)
        return named

    async def answer(self, image: Pixels | bytes) -> Prediction:
        """As `predict`; also of pixels that are as the graph takes them, which say nothing of drift."""
        if isinstance(image, bytes):
            return await self.predict(image)
        return self._name(await self.batcher.submit(image), None)

    async def _pixels(self, data: bytes) -> tuple[Pixels, Seen]:
        if len(data) <= INLINE_BYTES:
            # Whoever else is there is read first: 32 that are decoded one after the other cost 15 us less each.
            await asyncio.sleep(0)
            try:
                return self._decode(data, min(INLINE_PIXELS, self._settings.max_pixels))
            except ImageError as error:
                if error.code != "image_too_large":
                    raise
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._decoders, self._decode, data, self._settings.max_pixels)

    def _warm_up(self) -> float:
        """Run the smallest and the largest batch, so that no request pays for the memory they need."""
        size = self.card.preprocessing
        images = np.zeros((self._settings.max_batch, size.height, size.width, size.channels), np.uint8)
        self.classifier.predict(images)
        self.classifier.predict(images[:1])
        start = perf_counter()
        self.classifier.predict(images[:1])
        return perf_counter() - start

    def _decode(self, data: bytes, max_pixels: int) -> tuple[Pixels, Seen]:
        start = perf_counter()
        preprocessing = self.card.preprocessing
        decoded = decode(data, preprocessing.channels, max_bytes=self._settings.max_bytes, max_pixels=max_pixels)
        pixels = preprocessing.fit(decoded)
        seen = drift.look(decoded, pixels)
        self._metrics.decoded(perf_counter() - start)
        return pixels, seen

    def _name(self, probabilities: np.ndarray, top_k: int | None) -> Prediction:
        values: list[float] = probabilities.tolist()
        if not math.isfinite(sum(values)):
            raise InvalidOutput("the model gave a value that is not a number")
        order = sorted(range(len(values)), key=values.__getitem__, reverse=True)
        # Six decimals: far finer than the contract's tolerance, and readable.
        ranked = {self.card.classes[index]: round(values[index], 6) for index in order[:top_k]}
        label, confidence = next(iter(ranked.items()))
        # The probability itself, not its six decimals: the thresholds in the training report count on it.
        least = self._settings.abstain_below
        abstained = least is not None and values[order[0]] < least
        self._metrics.predicted(label, confidence, abstained=abstained)
        return Prediction(
            label=label,
            confidence=confidence,
            abstained=abstained,
            prediction_set=self._prediction_set(probabilities, order),
            probabilities=ranked,
            model_version=self.card.version,
        )

    def _prediction_set(self, probabilities: np.ndarray, order: list[int]) -> list[str] | None:
        if self.card.calibration.threshold is None:
            return None
        [members] = self.card.calibration.prediction_sets(probabilities[np.newaxis])
        return [self.card.classes[index] for index in order if members[index]]


def _start_threads(pool: ThreadPoolExecutor) -> None:
    """Have every decoder from the beginning: the number of threads then says whether work is left behind."""
    meeting = threading.Barrier(DECODERS + 1)
    for _ in range(DECODERS):
        pool.submit(meeting.wait)
    meeting.wait()
