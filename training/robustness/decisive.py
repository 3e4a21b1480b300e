"""Images without what decides: each loses the regions on which its own answer depends the most, or others.

The regions are those of the service's explanations (`serving.contract.covers`): each is covered in turn, and the
probability of the predicted class falls by how much it depends on it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Int64

from serving.contract.card.model_card import VIEWS
from serving.contract.covers import GRID, covered, without
from serving.contract.decode import Pixels
from training.data.dataset import LabelledImages
from training.metrics.classification import Probabilities
from training.models.prediction import ProbabilityModel, fitted_batches, inference_batch

REGIONS = GRID * GRID // 4
"""Number of regions that are hidden: a quarter of each image."""

Regions = Bool[np.ndarray, "rows columns"]


@dataclass(frozen=True, kw_only=True)
class WithoutRegions:
    """Answers to images of which a quarter is hidden, a row for each."""

    decisive: Probabilities
    """Without the regions on which the answer depends the most."""
    others: Probabilities
    """Without as many of the other regions, drawn by chance."""
    examples: list[Pixels]
    """Images without their decisive regions."""


def answers_without_regions(
    classifier: ProbabilityModel,
    images: LabelledImages,
    indices: Int64[np.ndarray, " _"],
    examples: Sequence[int],
    seed: int = 0,
) -> WithoutRegions:
    """Explain each image, hide regions by it, and predict again: GRID * GRID + 3 answers an image.

    `examples` are those of `indices` whose images are returned, too.
    """
    order = [classifier.card.classes.index(name) for name in images.classes]
    decisive, others, shown = [], [], {}
    remaining = iter(indices.tolist())
    for batch in fitted_batches(classifier.card, images, indices):
        for fitted, index in zip(batch, remaining, strict=False):
            regions = decisive_regions(classifier, fitted)
            hidden = without(fitted, regions)
            control = without(fitted, _others(regions, np.random.default_rng((seed, index))))
            rows = classifier.predict(np.stack([hidden, control]))[:, order]
            decisive.append(rows[0])
            others.append(rows[1])
            if index in examples:
                shown[index] = hidden
    return WithoutRegions(
        decisive=np.stack(decisive), others=np.stack(others), examples=[shown[index] for index in examples]
    )


def decisive_regions(classifier: ProbabilityModel, fitted: Pixels) -> Regions:
    """The regions on which the predicted class depends the most, of a resized image."""
    label = classifier.predict(fitted[np.newaxis])[0].argmax()
    views = covered(fitted)
    height, width, _ = fitted.shape
    size = inference_batch(height, width, VIEWS[classifier.card.views])
    supported = [classifier.predict(views[start : start + size])[:, label] for start in range(0, len(views), size)]
    regions = np.zeros(GRID * GRID, bool)
    regions[np.argsort(np.concatenate(supported), kind="stable")[:REGIONS]] = True
    return regions.reshape(GRID, GRID)


def _others(regions: Regions, rng: np.random.Generator) -> Regions:
    others = np.zeros(regions.size, bool)
    others[rng.choice(np.flatnonzero(~regions), REGIONS, replace=False)] = True
    return others.reshape(regions.shape)
