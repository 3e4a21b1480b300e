"""Lines of the check about time: a batch of each size, batches of changing sizes, and many requests at once."""

import asyncio
import resource
import sys
from time import perf_counter

import numpy as np
from prometheus_client import CollectorRegistry

from serving.check.model import random_images
from serving.contract.model import Classifier, open_model
from serving.contract.selfcheck import Result
from serving.inference.padding import batch_sizes
from serving.inference.predictor import Predictor
from serving.metrics import Metrics
from serving.settings import Settings

REPEATS_S = 0.3
"""Seconds for each size of batch, and at least three runs."""
CHANGES = 200
CLIENTS = 32
LOAD_S = 2.0
PLANNED_AGAIN = 3.0
"""A batch that takes this many times its median has had its convolutions planned again."""


def latency_by_batch(settings: Settings) -> Result:
    """The median time of a batch of each size, warmed."""
    classifier = _opened(settings)
    sizes = batch_sizes(classifier.card.images_at_once(settings.max_batch))
    milliseconds = {size: 1000 * np.median(_times(classifier, size)) for size in sizes}
    shown = ", ".join(f"{size}: {time:.2f}" for size, time in milliseconds.items())
    best = max(size * 1000 / time for size, time in milliseconds.items())
    numbers = {f"batch {size}, ms": float(time) for size, time in milliseconds.items()}
    return Result(
        detail=f"ms by batch {shown}; at most {best:,.0f} images/s", numbers=numbers | {"images/s": float(best)}
    )


def changing_batches(settings: Settings) -> Result:
    """Batches of all sizes in random order take what each size takes alone: nothing is planned again."""
    classifier = _opened(settings)
    largest = classifier.card.images_at_once(settings.max_batch)
    sizes = batch_sizes(largest)
    alone = {size: float(np.median(_times(classifier, size))) for size in sizes}
    images = random_images(classifier, largest)
    ratios = []
    for size in np.random.default_rng(0).choice(sizes, CHANGES):
        start = perf_counter()
        classifier.predict(images[:size])
        ratios.append((perf_counter() - start) / alone[int(size)])
    p50, p99 = np.percentile(ratios, [50, 99])
    if p50 > PLANNED_AGAIN:
        raise RuntimeError(f"a batch after one of another size takes {p50:.1f} times what it takes alone")
    return Result(detail=f"{p50:.2f} times alone (p99 {p99:.2f})", numbers={"p50": float(p50), "p99": float(p99)})


def load(settings: Settings) -> Result:
    """Clients that ask again after each answer, through the service's own batches; without HTTP and decoding."""
    classifier = _opened(settings)
    predictor = Predictor(classifier, settings, Metrics(CollectorRegistry()))
    images = random_images(classifier, CLIENTS)

    async def client(image: np.ndarray, until: float) -> list[float]:
        latencies = []
        while (start := perf_counter()) < until:
            await predictor.infer(image)
            latencies.append(perf_counter() - start)
        return latencies

    async def clients() -> list[float]:
        until = perf_counter() + LOAD_S
        return [one for each in await asyncio.gather(*(client(image, until) for image in images)) for one in each]

    latencies = asyncio.run(clients())
    p50, p99 = (1000 * float(value) for value in np.percentile(latencies, [50, 99]))
    largest = classifier.card.images_at_once(settings.max_batch)
    limit = largest / float(np.median(_times(classifier, largest)))
    rate = len(latencies) / LOAD_S
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 2**20
    numbers = {
        "images/s": rate,
        "share of the limit": rate / limit,
        "p50, ms": p50,
        "p99, ms": p99,
        "peak, MiB": memory,
    }
    detail = f"{rate:,.0f} images/s ({rate / limit:.2f} of full batches), p50 {p50:.1f} ms, p99 {p99:.1f} ms"
    return Result(detail=f"{detail}, {memory:,.0f} MiB at most", numbers=numbers)


def _opened(settings: Settings) -> Classifier:
    return open_model(settings.file, placement=settings.placement(), key=settings.public_key)


def _times(classifier: Classifier, size: int) -> list[float]:
    """Seconds of each run of a batch of this size, the first one left out."""
    images = random_images(classifier, size)
    classifier.predict(images)
    times: list[float] = []
    while len(times) < 3 or sum(times) < REPEATS_S:
        start = perf_counter()
        classifier.predict(images)
        times.append(perf_counter() - start)
    return times
