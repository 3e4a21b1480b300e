"""Whether today's images and answers are distributed like those the model was tested on.

Six features of each image are counted in bins that the trainer made from the test split, and two sets of counts are
compared by the population stability index: the sum of (q - p) ln(q / p) over the bins, of shares p then and q now. Of
equal distributions it is about (bins - 1) (1 / m + 1 / n) for m and n images (Yurdakul 2018), which is why a bin is
made for no fewer than IMAGES_A_BIN of them. By custom, under 0.1 is no drift and over 0.25 is one to look into.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import cv2
import numpy as np
from jaxtyping import Float32, Float64, Int64, UInt8

FEATURES = ("brightness", "contrast", "width", "height", "label", "confidence")
"""Mean and standard deviation of the pixels after resizing, as shares of 255, the latter averaged over channels; size
in pixels of the upright image before resizing; the predicted class as its number; and its probability."""
MAX_BINS = 10
IMAGES_A_BIN = 50
MIN_WINDOW = MAX_BINS * IMAGES_A_BIN
UPDATES_A_WINDOW = 20

Seen = tuple[float, float, float, float]
"""What an image is like before it is answered: brightness, contrast, width, height."""
Observations = Float64[np.ndarray, "images 6"]


@dataclass(frozen=True, kw_only=True)
class Histogram:
    """Counts of values in bins `(-inf, e0], (e0, e1], ..., (en, inf)`."""

    edges: tuple[float, ...]
    counts: tuple[int, ...]

    @classmethod
    def of(cls, values: Float64[np.ndarray, " images"], bins: int) -> "Histogram":
        """Bins with equally many of these values; where there are only a few different ones, one for each of them.

        In the latter case what is between them has bins too, which are empty.
        """
        distinct = np.unique(values)
        if len(distinct) <= bins:
            edges = np.unique([np.nextafter(distinct, -np.inf), distinct])
        else:
            edges = np.unique(np.quantile(values, np.arange(1, bins) / bins, method="inverted_cdf"))
        return cls(edges=tuple(map(float, edges)), counts=tuple(map(int, _count(edges, values))))

    @property
    def images_needed(self) -> int:
        """So few images have no distribution to speak of in these bins."""
        return IMAGES_A_BIN * sum(count > 0 for count in self.counts)

    def stability(self, values: Float64[np.ndarray, " images"]) -> float:
        """Population stability index of these values against those the histogram was made of; 0 is no change.

        Half an image is added to each bin that holds one on either side, so that a bin that only one side has counts.
        """
        counts = np.stack([self.counts, _count(np.array(self.edges), values)])
        counts = counts[:, counts.any(0)] + 0.5
        expected, found = counts / counts.sum(1, keepdims=True)
        return float(((found - expected) * np.log(found / expected)).sum())


def _count(edges: Float64[np.ndarray, " edges"], values: Float64[np.ndarray, " images"]) -> Int64[np.ndarray, " bins"]:
    return np.bincount(np.searchsorted(edges, values, side="left"), minlength=len(edges) + 1)


def look(decoded: UInt8[np.ndarray, "h w c"], pixels: UInt8[np.ndarray, "height width c"]) -> Seen:
    """What an image is like: `decoded` upright as it was sent, `pixels` as the graph takes it."""
    mean, deviation = (moment.ravel().tolist() for moment in cv2.meanStdDev(pixels))  # faster than arrays of three
    height, width = decoded.shape[:2]
    return sum(mean) / len(mean) / 255, sum(deviation) / len(deviation) / 255, float(width), float(height)


def observe(seen: Seen, probabilities: Float32[np.ndarray, " classes"]) -> tuple[float, ...]:
    """The values of FEATURES, in their order, of one answered image."""
    label = int(probabilities.argmax())
    return (*seen, float(label), float(probabilities[label]))


def reference(observations: Observations) -> dict[str, Histogram]:
    """The histogram of each feature, for a model card to hold; none from fewer images than two bins take."""
    bins = min(len(observations) // IMAGES_A_BIN, MAX_BINS)
    if bins < 2:
        return {}
    return {name: Histogram.of(values, bins) for name, values in zip(FEATURES, observations.T, strict=True)}


class Window:
    """The last `size` answered images, compared with the reference of a model card every so often.

    `publish` is told the index of each feature for which there are images enough.
    """

    def __init__(
        self, reference: Mapping[str, Histogram], size: int, publish: Callable[[Mapping[str, float]], None]
    ) -> None:
        self._reference = reference
        self._rows = np.empty((size, len(FEATURES)))
        self._seen = 0
        self._every = size // UPDATES_A_WINDOW
        self._publish = publish

    def append(self, seen: Seen, probabilities: Float32[np.ndarray, " classes"]) -> None:
        """Count an answered image in."""
        self._rows[self._seen % len(self._rows)] = observe(seen, probabilities)
        self._seen += 1
        if self._seen % self._every == 0 and self._reference:
            self._publish(self.stability())

    def stability(self) -> dict[str, float]:
        """The index of each feature; those for which there are too few images are left out."""
        rows = self._rows[: self._seen]
        columns = dict(zip(FEATURES, rows.T, strict=True))
        return {
            name: histogram.stability(columns[name])
            for name, histogram in self._reference.items()
            if len(rows) >= histogram.images_needed
        }
