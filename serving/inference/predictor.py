"""From the bytes of an image to a prediction: decode, run the model, name the class. Nothing here knows HTTP."""

import asyncio
import logging
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from time import perf_counter

import numpy as np

from serving.contract import drift
from serving.contract.decode import Pixels
from serving.contract.drift import ImageFeatures
from serving.contract.formats.image_header import ImageError
from serving.contract.model import Answer, Classifier, Images
from serving.cores import available_cores
from serving.inference.batching import Batcher
from serving.inference.padding import batch_sizes, padded
from serving.inference.prediction import Prediction, check_output, describe
from serving.inference.threads import run_in_thread
from serving.metrics import Metrics
from serving.settings import Settings
from serving.tracing import Tracing

log = logging.getLogger("bentoml.twinlens")

DECODERS = 2
# Up to this size, decoding takes about as long as handing it to a thread, and never long: the event loop decodes.
INLINE_BYTES = 8 * 1024
INLINE_PIXELS = 2**15
INLINE_S = 0.001
"""A model that takes less for one image runs in the event loop while no other image waits. A slower model would block
the loop, which then could not refuse requests in time. A GPU may take longer at any time, as others may use it, too."""
SMALL_BATCH, LARGER_BATCH_AT_MOST = 4, 1.05
"""A model takes batches of 4 where an image takes more than 1.05 times as long in the largest batch. The tensors of a
large batch leave the cache: for an image of 224 px EfficientNet-Lite0 takes 9.4 ms in batches of 4 on one core, 11.1 ms
in batches of 32."""
SLOW_IMAGE_S = 0.005
"""A model that takes less for one image keeps its batches, because what a batch saves, some 0.1 ms an image, counts."""
RUNS = 2
"""Runs of which the least time counts: other work on the machine only slows a run down. A third would cost the start of
a model of 14 MB 0.3 s more."""
TURNS = 4
"""Turns of the event loop before each batch, on a single core: send answers, accept, read and decode requests."""
FAILURES = 3
"""Consecutive failed runs after which the model counts as lost."""
HANGS_AFTER, HANGS_S, HANGS_BATCHES = 3, 30.0, 10
"""Deadlines of a request, seconds, and times of a full batch at the start, after which a run of the model counts as one
that never ends: the longest of them."""


class Predictor:
    """One opened model and its batcher, replaceable as a whole.

    A request that holds a predictor is answered by its model. Its threads end when no request holds it.
    """

    def __init__(
        self, classifier: Classifier, settings: Settings, metrics: Metrics, tracing: Tracing | None = None
    ) -> None:
        self.card = classifier.card
        self.classifier = classifier
        self._metrics = metrics
        self._settings = settings
        self._tracing = tracing
        self._trace_batch = tracing.ran if tracing else None
        self._largest = self.card.images_at_once(settings.max_batch)
        self._decoders = ThreadPoolExecutor(DECODERS, thread_name_prefix="decode")
        one_image_s, max_batch = self._warm_up_on_gpu() if classifier.on_gpu else self._warm_up()
        inline = one_image_s < INLINE_S and not classifier.on_gpu
        log.info(
            "model %s %s takes batches of at most %d images; one image takes %.2f ms, %s",
            self.card.name,
            self.card.version,
            max_batch,
            one_image_s * 1000,
            "in the event loop" if inline else "in a thread",
        )
        self.batcher = Batcher(
            # No method of this object: the cycle would keep its threads until the next garbage collection.
            partial(_answer_padded, classifier, self._largest) if classifier.on_gpu else classifier.rows,
            max_batch=max_batch,
            observe=metrics.inference.ran,
            inline=inline,
            turns=TURNS if available_cores() == 1 else 0,
        )
        publish = partial(metrics.model.drifted, classifier)
        self._window = drift.Window(self.card.reference, settings.drift_window, publish)
        full_batch_s = one_image_s * max_batch
        self._hangs_s = max(HANGS_AFTER * settings.timeout_s, HANGS_S, HANGS_BATCHES * full_batch_s)

    @property
    def alive(self) -> bool:
        """Whether the model still runs: a lost GPU fails every run, and a driver may let one hang."""
        return self.batcher.failures < FAILURES and self.batcher.running_s <= self._hangs_s

    async def infer(self, image: bytes | Pixels) -> Answer:
        """The model's output for one image, unchanged to the last bit.

        The image is encoded, or pixels as the graph takes them; pixels say nothing about drift, so they are not
        measured. Raises ImageError, InvalidOutput. Cancelling the call takes the image out of the queue.
        """
        if not isinstance(image, bytes):
            answer = await self.batcher.submit(image, trace=self._trace_batch)
            check_output(answer)
            return answer
        pixels, features = await self._pixels(image)
        answer = await self.batcher.submit(pixels, trace=self._trace_batch)
        check_output(answer)
        self._window.append(features, answer.probabilities)
        return answer

    async def embed(self, data: bytes) -> Answer:
        """As `infer` of an encoded image, but not measured for drift: mostly it was answered before."""
        pixels, _ = await self._pixels(data)
        answer = await self.batcher.submit(pixels, trace=self._trace_batch)
        check_output(answer)
        return answer

    def describe(self, answer: Answer, top_k: int | None = None) -> Prediction:
        """The prediction of `infer`'s output, with its `top_k` most likely classes (all when None).

        The metrics count it. Raises InvalidOutput.
        """
        prediction = describe(answer, self.card, top_k=top_k, abstain_below=self._settings.abstain_below)
        self._metrics.inference.predicted(prediction.label, prediction.confidence, abstained=prediction.abstained)
        self._metrics.inference.decided(prediction.decisions or {}, prediction.least_cost)
        if prediction.unfamiliar:
            self._metrics.inference.unfamiliar()
        return prediction

    async def predict(self, data: bytes, top_k: int | None = None) -> Prediction:
        """Decode, infer and describe one encoded image. Raises what `infer` raises."""
        return self.describe(await self.infer(data), top_k)

    async def _pixels(self, data: bytes) -> tuple[Pixels, ImageFeatures]:
        if self._tracing is None:
            return await self._decoded(data)
        start = perf_counter()
        try:
            return await self._decoded(data)
        finally:
            self._tracing.decoded(start)

    async def _decoded(self, data: bytes) -> tuple[Pixels, ImageFeatures]:
        if len(data) <= INLINE_BYTES:
            # Requests that have arrived are read before any image is decoded: 32 images decoded in sequence cost
            # 15 us less each.
            await asyncio.sleep(0)
            try:
                return self._decode(data, min(INLINE_PIXELS, self._settings.max_pixels))
            except ImageError as error:
                if error.code != "image_too_large":
                    raise
        return await run_in_thread(self._decoders, partial(self._decode, max_pixels=self._settings.max_pixels), data)

    def _warm_up(self) -> tuple[float, int]:
        """Run the largest and the smallest batch, so that no request waits for their memory.

        Returns the seconds for one image, and how many images a batch shall have at most.
        """
        size, largest = self.card.preprocessing, self._largest
        images = np.zeros((largest, size.height, size.width, size.channels), np.uint8)
        one, small = images[:1], images[:SMALL_BATCH]
        for batch in (images, one, small):
            self.classifier.predict(batch)
        one_image_s = min(self._image_seconds(one) for _ in range(RUNS))
        if one_image_s < SLOW_IMAGE_S or largest <= SMALL_BATCH:
            return one_image_s, largest
        # In turn, so that a busy second of the machine meets both sizes.
        times = [(self._image_seconds(small), self._image_seconds(images)) for _ in range(RUNS)]
        small_s, large_s = (min(seconds) for seconds in zip(*times, strict=True))
        if large_s < LARGER_BATCH_AT_MOST * small_s:
            return one_image_s, largest
        # 300 of 437 MB with EfficientNet-Lite0 and 32 images of 224 px.
        self.classifier.release_memory()
        self.classifier.predict(small)
        return one_image_s, len(small)

    def _warm_up_on_gpu(self) -> tuple[float, int]:
        """Run a batch of each size that will come, so that no request waits for the planning of its convolutions.

        Returns what `_warm_up` does; batches stay as large as the settings allow.
        """
        size, largest = self.card.preprocessing, self._largest
        images = np.zeros((largest, size.height, size.width, size.channels), np.uint8)
        for number in reversed(batch_sizes(largest)):  # the largest one makes room for all
            self.classifier.predict(images[:number])
        return self._image_seconds(images[:1]), largest

    def _image_seconds(self, images: np.ndarray) -> float:
        """Seconds for an image of this batch."""
        start = perf_counter()
        self.classifier.predict(images)
        return (perf_counter() - start) / len(images)

    def _decode(self, data: bytes, max_pixels: int) -> tuple[Pixels, ImageFeatures]:
        start = perf_counter()
        preprocessing = self.card.preprocessing
        decoded = preprocessing.decoded(data, max_bytes=self._settings.max_bytes, max_pixels=max_pixels)
        pixels = preprocessing.fitted(decoded, max_pixels=max_pixels)
        features = drift.image_features(decoded, pixels)
        self._metrics.inference.decoded(perf_counter() - start)
        return pixels, features


def _answer_padded(classifier: Classifier, max_batch: int, images: Images) -> list[Answer]:
    return classifier.rows(padded(images, max_batch))[: len(images)]
