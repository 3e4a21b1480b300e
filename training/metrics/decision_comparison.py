"""Decisions for one class by two models, A and B, on the same images: by what their rates differ."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int64

from serving.contract.card.decisions import OperatingPoint
from training.metrics.classification import Labels, Probabilities
from training.metrics.comparison import Letter, sign_flip
from training.metrics.intervals.bootstrap import widened_difference
from training.metrics.intervals.proportions import Interval, Right
from training.metrics.intervals.resampling import resamples


@dataclass(frozen=True, kw_only=True)
class RateDifference:
    """The share that each model decides rightly, B's minus A's, and its paired 95 % interval."""

    images: int
    a: float
    b: float
    value: float
    interval: Interval
    better: Letter | None
    """None where the interval contains zero."""
    only_a_right: int
    only_b_right: int
    p_value: float
    """The result of `sign_flip`."""


@dataclass(frozen=True, kw_only=True)
class DecisionComparison:
    """What two models decide for one class; a rate is None where no image counts for it."""

    label: str
    points: tuple[OperatingPoint, OperatingPoint]
    sensitivity: RateDifference | None
    specificity: RateDifference | None

    @property
    def sentence(self) -> str:
        """Both rates for the console."""
        rates = {"sensitivity": self.sensitivity, "specificity": self.specificity}
        parts = [
            f"{name} {rate.b - rate.a:+.3f} ({rate.interval[0]:+.3f} to {rate.interval[1]:+.3f}, "
            f"{f'{rate.better} is better' if rate.better else 'undecided'})"
            for name, rate in rates.items()
            if rate
        ]
        return f"{self.label}, decisions of B less those of A: {', '.join(parts)}"


def compare_decisions(
    points: tuple[Iterable[OperatingPoint], Iterable[OperatingPoint]],
    answers: tuple[Probabilities, Probabilities],
    classes: Sequence[str],
    labels: Labels,
    components: Int64[np.ndarray, " images"],
) -> list[DecisionComparison]:
    """The decisions for each class that both models decide for; `classes` names the columns of both answers."""
    first, second = ({point.label: point for point in each} for each in points)
    comparisons = []
    for name in (name for name in first if name in second):
        label, pair = classes.index(name), (first[name], second[name])
        is_class = labels == label
        right = [point.decides(each[:, label]) == is_class for point, each in zip(pair, answers, strict=True)]
        sensitivity, specificity = (
            rate_difference(right[0][among], right[1][among], components[among]) for among in (is_class, ~is_class)
        )
        comparisons.append(
            DecisionComparison(label=name, points=pair, sensitivity=sensitivity, specificity=specificity)
        )
    return comparisons


def rate_difference(a: Right, b: Right, components: Int64[np.ndarray, " images"]) -> RateDifference | None:
    """Compare which images each model decides rightly; all images of one component are one draw. None without images.

    The interval is that of `widened_difference`.
    """
    if not len(a):
        return None
    change = b.astype(float) - a
    drawn = resamples(components, np.random.default_rng(0))
    differences = np.concatenate([weights @ change / weights.sum(1) for weights in drawn])
    interval = widened_difference(differences, a, b, components)
    better: Letter | None = None if interval[0] <= 0 <= interval[1] else "B" if interval[0] > 0 else "A"
    return RateDifference(
        images=len(a),
        a=float(a.mean()),
        b=float(b.mean()),
        value=float(change.mean()),
        interval=interval,
        better=better,
        only_a_right=int((a & ~b).sum()),
        only_b_right=int((b & ~a).sum()),
        p_value=sign_flip(a, b, components),
    )
