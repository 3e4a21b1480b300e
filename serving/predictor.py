"""From the bytes of an image to an answer: decode, wait for the model, name the class. Knows nothing of HTTP."""

import asyncio
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from time import perf_counter

import numpy as np

from serving import drift
from serving.batching import Batcher
from serving.contract import Pixels, decode
from serving.drift import Seen
from serving.metrics import Metrics
from serving.model import Classifier
from serving.settings import Settings

DECODERS = 2


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
        self.batcher = Batcher(
            classifier.predict,
            max_batch=settings.max_batch,
            max_queue=settings.max_queue,
            observe=self._metrics.ran,
        )
        self._window = drift.Window(self.card.reference, settings.drift_window, metrics.drifted)

    async def predict(self, data: bytes, top_k: int | None = None) -> Prediction:
        """Answer one encoded image, with its `top_k` most likely classes (all when None).

        Raises ImageError, QueueFull, InvalidOutput, and TimeoutError when the settings' deadline passes.
        """
        async with asyncio.timeout(self._settings.timeout_s):
            loop = asyncio.get_running_loop()
            pixels, seen = await loop.run_in_executor(self._decoders, self._decode, data)
            probabilities = await self.batcher.submit(pixels)
            named = self._name(probabilities, top_k)
            self._window.append(seen, probabilities)
            return named

    def _decode(self, data: bytes) -> tuple[Pixels, Seen]:
        start = perf_counter()
        preprocessing, settings = self.card.preprocessing, self._settings
        decoded = decode(data, preprocessing.channels, max_bytes=settings.max_bytes, max_pixels=settings.max_pixels)
        pixels = preprocessing.fit(decoded)
        seen = drift.look(decoded, pixels)
        self._metrics.decoded(perf_counter() - start)
        return pixels, seen

    def _name(self, probabilities: np.ndarray, top_k: int | None) -> Prediction:
        if not np.isfinite(probabilities).all():
            raise InvalidOutput("the model gave a value that is not a number")
        order = np.argsort(-probabilities, kind="stable")
        # Six decimals: far finer than the contract's tolerance, and readable.
        ranked = {self.card.classes[index]: round(float(probabilities[index]), 6) for index in order[:top_k]}
        label, confidence = next(iter(ranked.items()))
        # The probability itself, not its six decimals: the thresholds in the training report count on it.
        least = self._settings.abstain_below
        abstained = least is not None and float(probabilities[order[0]]) < least
        self._metrics.predicted(label, confidence, abstained=abstained)
        return Prediction(
            label=label,
            confidence=confidence,
            abstained=abstained,
            prediction_set=self._prediction_set(probabilities, order),
            probabilities=ranked,
            model_version=self.card.version,
        )

    def _prediction_set(self, probabilities: np.ndarray, order: np.ndarray) -> list[str] | None:
        if self.card.calibration.threshold is None:
            return None
        [members] = self.card.calibration.prediction_sets(probabilities[np.newaxis])
        return [self.card.classes[index] for index in order if members[index]]
