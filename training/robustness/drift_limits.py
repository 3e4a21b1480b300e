"""Up to which stability index a drift of the images was shown to be harmless: the limits of the service's drift alert.

The service compares the last images with those of the test split by the stability index of each feature
(`serving.contract.drift`). The same index of changed images, beside what the change costs, says where an alert is due.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Literal

import numpy as np

from serving.contract.drift import (
    LIMIT,
    NO_DRIFT,
    FeatureRows,
    Histogram,
    feature_row,
    image_features,
    stability_indices,
)
from training.metrics.classification import Probabilities
from training.models.prediction import Images

Effect = Literal["harmful", "harmless", "undecided"]
"""What is shown of a change; undecided, where the images are too few for either."""
SIZES = ("width", "height")
"""No change alters these."""


@dataclass(frozen=True, kw_only=True)
class Step:
    """One strength of a change."""

    change: str
    effect: Effect
    stability: dict[str, float]
    """Stability index of each feature of the card; empty without a reference, or of too few images for one."""


def feature_rows(fitted: Images, probabilities: Probabilities) -> FeatureRows:
    """The features of resized images; width and height are those after resizing, and no change alters them."""
    return np.array(
        [feature_row(image_features(image, image), row) for image, row in zip(fitted, probabilities, strict=True)]
    )


def distances(reference: Mapping[str, Histogram], rows: FeatureRows) -> dict[str, float]:
    """The stability index of each feature that a change can alter."""
    return stability_indices({name: values for name, values in reference.items() if name not in SIZES}, rows)


def drift_limits(steps: Sequence[Step]) -> dict[str, float]:
    """The limit of each feature, such that an alert comes at the first harm of each change that any feature notices.

    At first, a limit is the largest index that was shown to be harmless. Where the first harm of a change exceeds no
    limit, that of the feature which it comes nearest to is lowered: to the index at the last harmless strength before,
    at least NO_DRIFT. A feature that notices no harm has LIMIT at least. `steps` are in the order of changes and
    strengths; what comes after the first harm of a change may be luck.
    """
    features = dict.fromkeys(name for step in steps for name in step.stability)
    harms = _first_harms(steps)
    limits = {name: max([NO_DRIFT, *(step.stability[name] for step in _harmless(steps))]) for name in features}
    for harm in harms:
        shares = {name: index / limits[name] for name, index in harm.stability.items() if index > NO_DRIFT}
        if shares and max(shares.values()) <= 1:
            name = max(shares, key=shares.__getitem__)
            before = [step.stability[name] for step in _harmless(steps) if step.change == harm.change]
            limits[name] = max([NO_DRIFT, *(index for index in before if index < harm.stability[name])])
    for name, limit in limits.items():
        if not any(harm.stability[name] > limit for harm in harms):
            limits[name] = max(LIMIT, limit)
    # Rounded up: what was harmless does not exceed its limit. First to more places, as 10,000 * 2.341 is above 23,410.
    return {name: math.ceil(round(10_000 * limit, 6)) / 10_000 for name, limit in limits.items()}


def unnoticed(steps: Sequence[Step], limits: Mapping[str, float]) -> list[str]:
    """The changes that do harm at a strength at which no feature exceeds its limit."""
    return [harm.change for harm in _first_harms(steps) if not _exceeds(harm, limits)]


def false_alarms(steps: Sequence[Step], limits: Mapping[str, float]) -> list[str]:
    """The changes at whose harmless strengths a feature exceeds its limit."""
    return list(dict.fromkeys(step.change for step in _harmless(steps) if _exceeds(step, limits)))


def _exceeds(step: Step, limits: Mapping[str, float]) -> bool:
    return any(step.stability[name] > limit for name, limit in limits.items())


def _harmless(steps: Sequence[Step]) -> list[Step]:
    """Steps of each change that were shown to be harmless before its first harm."""
    changes = dict.fromkeys(step.change for step in steps)
    by_change = ([step for step in steps if step.change == change] for change in changes)
    before = (takewhile(lambda step: step.effect != "harmful", mine) for mine in by_change)
    return [step for mine in before for step in mine if step.effect == "harmless"]


def _first_harms(steps: Sequence[Step]) -> list[Step]:
    first: dict[str, Step] = {}
    for step in steps:
        if step.effect == "harmful":
            first.setdefault(step.change, step)
    return list(first.values())


def setting(version: str, limits: Mapping[str, float]) -> str:
    """The limits of the model of this version, as the service's setting takes them."""
    return f"{version}:{','.join(f'{feature}={limit:g}' for feature, limit in limits.items())}"
