"""Drift: whether recent images and predictions are distributed like those of the test split.

Six features of each image are counted in bins. The trainer makes the bins from the test split. The measure is the
population stability index, the sum of (q - p) ln(q / p) over the bins, with p the share of the test split in a bin and
q the share of the recent images. For two samples of one distribution its expected value is about
(bins - 1) (1 / m + 1 / n), with m and n images (Yurdakul 2018, https://scholarworks.wmich.edu/dissertations/3208).
Therefore there is at most one bin for IMAGES_PER_BIN images. By convention, an index below NO_DRIFT means no drift, and
one above LIMIT means that a person should look at the images.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, get_args

import cv2
import numpy as np
from jaxtyping import Float32, Float64, Int64, UInt8

Feature = Literal["brightness", "contrast", "width", "height", "label", "confidence"]
FEATURES: tuple[Feature, ...] = get_args(Feature)
"""Brightness and contrast are the mean and the standard deviation of the resized pixels, as shares of 255; the standard
deviation is the average of the channels. Width and height are those of the upright image before resizing, in pixels.
The label is the number of the predicted class, the confidence is its probability."""
NO_DRIFT, LIMIT = 0.1, 0.25
MAX_BINS = 10
IMAGES_PER_BIN = 50
MIN_WINDOW = MAX_BINS * IMAGES_PER_BIN
UPDATES_PER_WINDOW = 20

ImageFeatures = tuple[float, float, float, float]
"""Brightness, contrast, width and height: the features that do not depend on the model."""
FeatureRows = Float64[np.ndarray, "images 6"]
"""A row for each image, with a column for each of FEATURES."""


@dataclass(frozen=True, kw_only=True)
class Histogram:
    """Counts of values in the bins `(-inf, e0], (e0, e1], ..., (en, inf)`."""

    edges: tuple[float, ...]
    counts: tuple[int, ...]

    @classmethod
    def of(cls, values: Float64[np.ndarray, " images"], bins: int) -> "Histogram":
        """Make bins with equal counts. Up to `bins` different values have a bin each, with empty bins between them."""
        distinct = np.unique(values)
        if len(distinct) <= bins:
            edges = np.unique([np.nextafter(distinct, -np.inf), distinct])
        else:
            edges = np.unique(np.quantile(values, np.arange(1, bins) / bins, method="inverted_cdf"))
        return cls(edges=tuple(map(float, edges)), counts=tuple(map(int, _count(edges, values))))

    @property
    def images_needed(self) -> int:
        """The smallest number of images for which `stability_index` has a meaning."""
        return IMAGES_PER_BIN * sum(count > 0 for count in self.counts)

    def stability_index(self, values: Float64[np.ndarray, " images"]) -> float:
        """Population stability index of `values` against the values of this histogram. 0 means no change.

        Half an image is added to each bin, so that a bin that is empty on one side gives a finite number. Bins that
        are empty on both sides are left out.
        """
        counts = np.stack([self.counts, _count(np.array(self.edges), values)])
        counts = counts[:, counts.any(0)] + 0.5
        expected, actual = counts / counts.sum(1, keepdims=True)
        return float(((actual - expected) * np.log(actual / expected)).sum())


def _count(edges: Float64[np.ndarray, " edges"], values: Float64[np.ndarray, " images"]) -> Int64[np.ndarray, " bins"]:
    return np.bincount(np.searchsorted(edges, values, side="left"), minlength=len(edges) + 1)


def image_features(decoded: UInt8[np.ndarray, "h w c"], resized: UInt8[np.ndarray, "height width c"]) -> ImageFeatures:
    """Measure one image: `decoded` is upright and in its original size, `resized` is the input of the graph."""
    mean, deviation = (moment.ravel().tolist() for moment in cv2.meanStdDev(resized))  # faster than arrays of three
    height, width = decoded.shape[:2]
    return sum(mean) / len(mean) / 255, sum(deviation) / len(deviation) / 255, float(width), float(height)


def feature_row(image: ImageFeatures, probabilities: Float32[np.ndarray, " classes"]) -> tuple[float, ...]:
    """The values of FEATURES, in their order, for one image and the model's output for it."""
    label = int(probabilities.argmax())
    return (*image, float(label), float(probabilities[label]))


def histograms(rows: FeatureRows) -> dict[str, Histogram]:
    """The histogram of each feature, as a model card holds them. Empty if there are too few images for two bins."""
    bins = min(len(rows) // IMAGES_PER_BIN, MAX_BINS)
    if bins < 2:
        return {}
    return {name: Histogram.of(values, bins) for name, values in zip(FEATURES, rows.T, strict=True)}


def stability_indices(reference: Mapping[str, Histogram], rows: FeatureRows) -> dict[str, float]:
    """The stability index of each feature, without the features that need more images than there are."""
    columns = dict(zip(FEATURES, rows.T, strict=True))
    return {
        name: histogram.stability_index(columns[name])
        for name, histogram in reference.items()
        if len(rows) >= histogram.images_needed
    }


class Window:
    """The last `size` images, compared with a model card's histograms UPDATES_PER_WINDOW times in each `size` images.

    Each comparison calls `publish` with the stability index of each feature that has enough images.
    """

    def __init__(
        self, reference: Mapping[str, Histogram], size: int, publish: Callable[[Mapping[str, float]], None]
    ) -> None:
        self._reference = reference
        self._rows = np.empty((size, len(FEATURES)))
        self._images = 0
        self._interval = size // UPDATES_PER_WINDOW
        self._publish = publish

    def append(self, image: ImageFeatures, probabilities: Float32[np.ndarray, " classes"]) -> None:
        """Add an image and the model's output for it; the oldest image leaves a full window."""
        self._rows[self._images % len(self._rows)] = feature_row(image, probabilities)
        self._images += 1
        if self._images % self._interval == 0 and self._reference:
            self._publish(self.stability_indices())

    def stability_indices(self) -> dict[str, float]:
        """The stability index of each feature, without the features that need more images than there are."""
        return stability_indices(self._reference, self._rows[: self._images])
