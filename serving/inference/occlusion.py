"""Which regions of an image a prediction depends on: cover each in turn and measure how far the probability falls.

Occlusion maps as in Zeiler and Fergus, "Visualizing and Understanding Convolutional Networks" (2014), section 4.2. They
need only the model's output, so they work for every model. Nothing here knows HTTP.
"""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import cv2
import numpy as np
from jaxtyping import Float32

from serving.contract.covers import GRID, covered
from serving.contract.decode import Decoded, Pixels, Window
from serving.contract.model import Answer
from serving.inference.batching import BACKGROUND_ALONE, Overloaded
from serving.inference.prediction import check_output
from serving.inference.predictor import Predictor
from serving.inference.threads import run_in_thread
from serving.metrics import Metrics
from serving.settings import Settings

LONGEST_SIDE = 1024
"""Pixels of the original along its longer side, at most: enough for display."""

Drawn = TypeVar("Drawn")
Drops = Float32[np.ndarray, "rows columns"]


@dataclass(frozen=True, kw_only=True)
class Explanation:
    """How far each region of one image supports `label`, which the model gives the probability `confidence`.

    `drops[row, column]` is how far that probability falls, in [-1, 1], when the region is covered: above 0 the region
    supports the label, below 0 it opposes it. `original` is the upright image, `fitted` the model's input.
    """

    label: str
    confidence: float
    drops: Drops
    original: Decoded
    fitted: Pixels
    window: Window
    """Where `fitted` lies in the original."""
    model_version: str


class Explainer:
    """Explains a few images at a time; predictions that wait for the same model come first."""

    def __init__(self, settings: Settings, metrics: Metrics) -> None:
        self._settings = settings
        self._metrics = metrics
        self._running = 0
        # One thread: an explanation is decoded and drawn in it, never in the threads that decode for predictions.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="explain")

    async def explain(
        self, predictor: Predictor, data: bytes, label: str | None, draw: Callable[[Explanation], Drawn]
    ) -> Drawn:
        """Explain an encoded image's `label` (None: the predicted one); returns what `draw` makes of the explanation.

        Raises Overloaded when as many as the settings allow are running, ImageError, InvalidOutput.
        """
        if self._running >= self._settings.max_explanations:
            raise Overloaded(f"{self._running} explanations are running already")
        self._running += 1
        try:
            original, fitted = await run_in_thread(self._thread, partial(self._decode, predictor), data)
            explanation = await _explain(predictor, original, fitted, label)
            drawn = await run_in_thread(self._thread, draw, explanation)
            self._metrics.inference.explained()
            return drawn
        finally:
            self._running -= 1

    def _decode(self, predictor: Predictor, data: bytes) -> tuple[Decoded, Pixels]:
        preprocessing, max_pixels = predictor.card.preprocessing, self._settings.max_pixels
        pixels = preprocessing.decoded(data, max_bytes=self._settings.max_bytes, max_pixels=max_pixels)
        return _shrunk(pixels), preprocessing.fitted(pixels, max_pixels=max_pixels)


async def _explain(predictor: Predictor, original: Decoded, fitted: Pixels, label: str | None) -> Explanation:
    images = [fitted, *covered(fitted)]
    answers: list[Answer] = []
    # One background batch at a time: all images at once would keep the event loop from predictions.
    for start in range(0, len(images), BACKGROUND_ALONE):
        portion = images[start : start + BACKGROUND_ALONE]
        answers += await asyncio.gather(*(predictor.batcher.submit(image, background=True) for image in portion))
    for answer in answers:
        check_output(answer)
    probabilities = np.stack([answer.probabilities for answer in answers])
    classes = predictor.card.classes
    column = probabilities[:, classes.index(label) if label is not None else probabilities[0].argmax()]
    return Explanation(
        label=label if label is not None else classes[probabilities[0].argmax()],
        confidence=round(float(column[0]), 6),
        drops=(column[0] - column[1:]).reshape(GRID, GRID),
        original=original,
        fitted=fitted,
        window=predictor.card.preprocessing.window(*original.shape[:2]),
        model_version=predictor.card.version,
    )


def _shrunk(pixels: Decoded) -> Decoded:
    height, width, channels = pixels.shape
    scale = min(1.0, LONGEST_SIDE / max(height, width))
    size = max(1, round(width * scale)), max(1, round(height * scale))
    return cv2.resize(pixels, size, interpolation=cv2.INTER_AREA).reshape(size[1], size[0], channels)
