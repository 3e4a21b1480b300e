"""The processor time of model files for one image, as the service opens them: on one thread of the CPU."""

from collections.abc import Callable
from statistics import median
from time import thread_time

import numpy as np
from torch import nn

from serving.contract.card.model_card import INPUT_NAME, OUTPUT_NAME
from serving.contract.session import Placement, open_session
from training.export.onnx import graph

ROUNDS, REPEATS = 7, 15
"""Both in turn, seven times, each the median of 15 runs: what slows the processor slows both alike."""


def median_ratio(one: Callable[[], object], other: Callable[[], object]) -> float:
    """Time of the first divided by that of the second."""
    return median(first / second for first, second in _rounds(one, other))


def median_seconds(one: Callable[[], object], other: Callable[[], object]) -> tuple[float, float]:
    """Seconds of a run of each."""
    first, second = zip(*_rounds(one, other), strict=True)
    return median(first), median(second)


def _rounds(one: Callable[[], object], other: Callable[[], object]) -> list[tuple[float, float]]:
    return [(_median(one), _median(other)) for _ in range(ROUNDS)]


def _median(run: Callable[[], object]) -> float:
    """Seconds of this thread, in which a session of one thread runs: what else the machine does is not counted."""
    durations = []
    for _ in range(REPEATS):
        start = thread_time()
        run()
        durations.append(thread_time() - start)
    return median(durations)


def one_image(model: nn.Sequential, shape: tuple[int, ...]) -> Callable[[], object]:
    """The exported graph of `model` on one uint8 image of `shape` (height, width, channels), on one thread."""
    session = open_session(graph(model, shape), Placement(on="cpu"), threads=1)
    image = np.zeros((1, *shape), np.uint8)
    return lambda: session.run([OUTPUT_NAME], {INPUT_NAME: image})
