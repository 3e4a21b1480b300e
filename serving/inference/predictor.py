"""From the bytes of an image to an answer: decode, wait for the model, name the class. Knows nothing of HTTP."""

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from time import perf_counter

import numpy as np
from jaxtyping import Float32

from serving.contract import drift
from serving.contract.decode import Pixels, decode
from serving.contract.drift import ImageFeatures
from serving.contract.image_header import ImageError
from serving.contract.model import Classifier
from serving.cores import available_cores
from serving.inference.batching import Batcher
from serving.inference.prediction import Prediction, check_output, describe
from serving.metrics import Metrics
from serving.settings import Settings

Probabilities = Float32[np.ndarray, " classes"]

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
            turns=TURNS if available_cores() == 1 else 0,
        )
        self._window = drift.Window(self.card.reference, settings.drift_window, metrics.drifted)

    @property
    def alive(self) -> bool:
        """Whether the model still runs: a GPU that is lost fails every run."""
        return self.batcher.failures < FAILURES

    async def infer(self, image: bytes | Pixels) -> Probabilities:
        """The model's output for one image, float32 `[classes]`, unchanged to the last bit.

        The image is encoded, or pixels as the graph takes them; pixels say nothing about drift, so they are not
        measured. Raises ImageError, InvalidOutput. Cancelling the call takes the image out of the queue.
        """
        if not isinstance(image, bytes):
            probabilities = await self.batcher.submit(image)
            check_output(probabilities)
            return probabilities
        pixels, measured = await self._pixels(image)
        probabilities = await self.batcher.submit(pixels)
        check_output(probabilities)
        self._window.append(measured, probabilities)
        return probabilities

    def describe(self, probabilities: Probabilities, top_k: int | None = None) -> Prediction:
        """The prediction that `infer`'s output means, with its `top_k` most likely classes (all when None).

        It is counted in the metrics. Raises InvalidOutput.
        """
        prediction = describe(probabilities, self.card, top_k=top_k, abstain_below=self._settings.abstain_below)
        self._metrics.predicted(prediction.label, prediction.confidence, abstained=prediction.abstained)
        return prediction

    async def predict(self, data: bytes, top_k: int | None = None) -> Prediction:
        """Decode, infer and describe one encoded image. Raises what `infer` raises."""
        return self.describe(await self.infer(data), top_k)

    async def _pixels(self, data: bytes) -> tuple[Pixels, ImageFeatures]:
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

    def _decode(self, data: bytes, max_pixels: int) -> tuple[Pixels, ImageFeatures]:
        start = perf_counter()
        preprocessing = self.card.preprocessing
        decoded = decode(data, preprocessing.channels, max_bytes=self._settings.max_bytes, max_pixels=max_pixels)
        pixels = preprocessing.fit(decoded)
        features = drift.image_features(decoded, pixels)
        self._metrics.decoded(perf_counter() - start)
        return pixels, features


def _start_threads(pool: ThreadPoolExecutor) -> None:
    """Have every decoder from the beginning: the number of threads then says whether work is left behind."""
    meeting = threading.Barrier(DECODERS + 1)
    for _ in range(DECODERS):
        pool.submit(meeting.wait)
    meeting.wait()
