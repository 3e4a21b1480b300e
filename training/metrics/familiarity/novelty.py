"""Novelty: how far an image is from those of the training, and the limit above which it counts as unfamiliar.

Mahalanobis distance from the nearest class mean (Lee et al. 2018, https://arxiv.org/abs/1807.03888) of what the last
linear layer reads, scaled to length 1, by a covariance within classes that is shrunk (Ledoit and Wolf 2004). README.md
has the figures by which it was chosen.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float32, Float64, Int64
from scipy.linalg import eigh
from scipy.stats import binom
from sklearn.covariance import ledoit_wolf
from sklearn.metrics import roc_auc_score

from serving.contract.card.decisions import Familiarity
from serving.contract.card.model_card import ModelCard
from training.metrics.classification import between
from training.metrics.intervals.bootstrap import rate

DIRECTIONS = 64
"""Directions of largest variance that the graph measures one by one; in all others it takes their mean variance. With
all 1,280 of EfficientNet-Lite0 its file would be half as large again, and no set of other images stood out better."""
LEAST_DETECTED = 0.5
"""Share of images that show nothing; the report warns where fewer of them are unfamiliar."""
LEAST_SPREAD = 1e-4
"""With less, novelty measures how embeddings were rounded. A network whose last activations are all zero has none."""
SMALLEST_LENGTH = 1e-12
"""An embedding of zeros has no direction; divided by this, it stays one of zeros."""
CONFIDENCE = 0.9
"""That the limit holds for the validation images at hand. Without it the share would be kept on the mean of all
validation splits that could have been, and exceeded with half of them."""

Embeddings = Float32[np.ndarray, "images features"]
Novelty = Float32[np.ndarray, " _"]


@dataclass(frozen=True, kw_only=True)
class Detector:
    """The distance of an embedding from the training images; of these it is 1 on the quadratic mean.

    With v, the embedding of length 1 less `centre`, it is the root of
    `scale * |v|^2 - |v @ directions|^2 + min(v @ slopes + offsets)`. That is `min_k (v - m_k)' P (v - m_k)` with the
    mean m_k of class k and the precision P, multiplied out. Without `centre`, float32 would lose digits where
    embeddings are nearly alike.
    """

    centre: Float32[np.ndarray, " features"]
    scale: float
    directions: Float32[np.ndarray, "features directions"]
    slopes: Float32[np.ndarray, "features classes"]
    offsets: Float32[np.ndarray, " classes"]

    def novelty(self, embeddings: Embeddings) -> Novelty:
        """The distance of each embedding."""
        centred = unit(embeddings) - self.centre
        explained = np.square(centred @ self.directions).sum(1)
        squares = self.scale * np.square(centred).sum(1) - explained + (centred @ self.slopes + self.offsets).min(1)
        distances: np.ndarray = np.sqrt(squares.clip(0)).astype(np.float32)
        return distances


@dataclass(frozen=True, kw_only=True)
class Separation:
    """Novelty of images that show nothing, beside that of test images."""

    name: str
    images: int
    unfamiliar: float
    """Share."""
    roc_auc: float
    """Area under the ROC curve of telling them from test images by novelty."""


def unit(embeddings: Embeddings) -> Float64[np.ndarray, "images features"]:
    """The embeddings scaled to length 1."""
    values = embeddings.astype(np.float64)
    units: np.ndarray = values / np.maximum(np.linalg.norm(values, axis=1, keepdims=True), SMALLEST_LENGTH)
    return units


def fit(embeddings: Embeddings, labels: Int64[np.ndarray, " images"]) -> Detector:
    """The detector of training images; a class without one has no mean."""
    units = unit(embeddings)
    centre = units.mean(0).astype(np.float32)
    units = units - centre
    present, index = np.unique(labels, return_inverse=True)
    means = np.stack([units[labels == label].mean(0) for label in present])
    covariance, _ = ledoit_wolf(units - means[index], assume_centered=True)
    variances, vectors = eigh(covariance)
    features = len(variances)
    # Scaled by their number, so that the distance does not grow with it. Equal images have no variance at all.
    variances = np.maximum(variances * features, np.finfo(np.float32).tiny ** 0.5)
    first = max(features - DIRECTIONS, 0)
    rest = variances[:first].mean() if first else variances[0]
    directions = vectors[:, first:] * np.sqrt(1 / rest - 1 / variances[first:])
    projected = means @ directions
    return Detector(
        centre=centre,
        scale=float(np.float32(1 / rest)),
        directions=directions.astype(np.float32),
        slopes=(2 * (directions @ projected.T - means.T / rest)).astype(np.float32),
        offsets=(np.square(means).sum(1) / rest - np.square(projected).sum(1)).astype(np.float32),
    )


def spread(embeddings: Embeddings, labels: Int64[np.ndarray, " images"]) -> float:
    """The root mean square distance of embeddings of length 1 from the mean of their class."""
    units = unit(embeddings)
    parts = (units[labels == label] for label in np.unique(labels))
    return float(np.sqrt(sum(np.square(part - part.mean(0)).sum() for part in parts) / len(units)))


def choose(novelty: Novelty, components: Int64[np.ndarray, " images"], false_alarms: float) -> Familiarity | None:
    """The limit above which this share of images like these is at most, with a confidence of 90 %.

    `components` has one number for images that are not independent of one another, as those of a patient. Of n
    independent images the limit is the k-th smallest, with the smallest k that holds: a new image is below it with a
    probability of distribution Beta(k, n + 1 - k), whatever that of the novelty (Wilks 1941,
    https://doi.org/10.1214/aoms/1177731788; Vovk 2012, https://arxiv.org/abs/1209.2673). Images of a component count as
    one, as if they were copies. None where they are too few.
    """
    independent = len(np.unique(components))
    place = int(binom.ppf(CONFIDENCE, independent, 1 - false_alarms)) + 1
    if place > independent:
        return None
    ordered = np.sort(novelty.astype(np.float64))
    low = float(ordered[-(-(len(ordered) + 1) * place // (independent + 1)) - 1])  # the same share of all images
    above = ordered[ordered > low]
    threshold = between(low, float(above[0]) if len(above) else 1.01 * low)
    return Familiarity(threshold=threshold, false_alarms=false_alarms, images=len(novelty))


def fewest(false_alarms: float) -> int:
    """The number of independent validation images from which on `choose` finds a limit."""
    return math.ceil(math.log(1 - CONFIDENCE) / math.log(1 - false_alarms))


def why_none(components: Int64[np.ndarray, " images"], false_alarms: float) -> str:
    """A sentence for where there is no limit, with `components` as for `choose`."""
    images, independent = len(components), len(np.unique(components))
    if independent >= fewest(false_alarms):
        return (
            "The features of all images of a class are the same, as of a network that has learned nothing: the model "
            "says of no image that it is unfamiliar."
        )
    given = f"{images:,} validation images" + (f" of {independent:,} groups" if independent < images else "")
    enough = math.ceil(100 * (1 - (1 - CONFIDENCE) ** (1 / independent))) / 100
    return (
        f"{given} are too few for `--unfamiliar {false_alarms:g}`, which needs {fewest(false_alarms)}: the model says "
        f"of no image that it is unfamiliar. They are enough for `--unfamiliar {enough:g}`."
    )


def familiar_images(card: ModelCard, novelty: Novelty | None) -> Bool[np.ndarray, " images"] | None:
    """Which images are familiar to a model; None where it says of no image that it is unfamiliar."""
    return None if card.familiarity is None or novelty is None else ~card.familiarity.unfamiliar(novelty)


def compare(name: str, familiarity: Familiarity, test: Novelty, others: Novelty) -> Separation:
    """How `others` stand out from test images."""
    of_others = np.r_[np.zeros(len(test)), np.ones(len(others))]
    return Separation(
        name=name,
        images=len(others),
        unfamiliar=float(familiarity.unfamiliar(others).mean()),
        roc_auc=float(roc_auc_score(of_others, np.r_[test, others])),
    )


def novelty_facts(
    familiarity: Familiarity | None,
    novelty: Novelty | None,
    components: Int64[np.ndarray, " images"],
    blank: Mapping[str, Novelty],
) -> dict[str, Any] | None:
    """The part of report.json and evaluation.json: false alarms on these images, and how `blank` ones stand out."""
    if familiarity is None or novelty is None:
        return None
    alarms = rate(familiarity.unfamiliar(novelty), np.ones(len(novelty), bool), components)
    return {
        **asdict(familiarity),
        "measured": asdict(alarms),
        "unlike": [asdict(compare(name, familiarity, novelty, others)) for name, others in blank.items()],
    }


def novelty_warnings(facts: dict[str, Any] | None, images: str) -> Iterator[str]:
    """Sentences on more false alarms among `images` than stated, and on nothing that is taken for familiar."""
    if facts is None:
        return
    measured, wanted = facts["measured"], facts["false_alarms"]
    if measured["interval"] and measured["interval"][0] > wanted:
        yield (
            f"{measured['value']:.1%} of the {measured['images']:,} {images} are unfamiliar to the model, more than "
            f"the {wanted:.1%} that its limit is set for: they differ from the validation images."
        )
    for other in facts["unlike"]:
        if other["unfamiliar"] < LEAST_DETECTED:
            yield (
                f"Only {other['unfamiliar']:.0%} of {other['images']} images of {other['name']} are unfamiliar to the "
                "model: that an image is familiar says little."
            )
