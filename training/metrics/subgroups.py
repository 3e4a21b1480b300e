"""Scores by subgroup: for each value of a manifest's columns, and whether the largest gap may be chance."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np
from jaxtyping import Bool, Int64
from sklearn.metrics import recall_score

from training.metrics.calibration import Sets
from training.metrics.classification import ScoredImages, expected_calibration_error
from training.metrics.correction import holm
from training.metrics.intervals.bootstrap import Rate, balanced_accuracy_interval, rate
from training.metrics.intervals.proportions import LEVEL, Interval
from training.metrics.slices import Slicing

FEW = 20
"""A value of fewer images is shown and never compared."""
PERMUTATIONS = 2000


@dataclass(frozen=True, kw_only=True)
class Subgroup:
    """The scores of the images with one value; None where there is no image, or without prediction sets."""

    value: str
    accuracy: Rate
    balanced_accuracy: float | None
    balanced_accuracy_interval: Interval | None
    expected_calibration_error: float | None
    coverage: Rate | None
    """Share of images whose prediction set holds the true class."""

    @property
    def compared(self) -> bool:
        """Whether it has enough images to be compared with others."""
        return self.accuracy.images >= FEW


@dataclass(frozen=True, kw_only=True)
class SubgroupGap:
    """The largest difference of accuracy between two values with enough images."""

    lowest: str
    highest: str
    difference: float
    p: float
    """P value of a permutation test: how often values shuffled among groups of the same classes differ as much."""
    corrected_p: float
    """By Holm's method, for all columns."""


@dataclass(frozen=True, kw_only=True)
class Column:
    """The subgroups of one column."""

    name: str
    binned: bool
    subgroups: tuple[Subgroup, ...]
    gap: SubgroupGap | None
    """None where fewer than two values have enough images."""

    @property
    def warning(self) -> str | None:
        """The gap in a sentence where chance does not explain it, else None."""
        if self.gap is None or self.gap.corrected_p >= 1 - LEVEL:
            return None
        low, high = (
            next(s for s in self.subgroups if s.value == value) for value in (self.gap.lowest, self.gap.highest)
        )
        return (
            f"Accuracy differs by {self.name}: {low.accuracy.value:.1%} on the {low.accuracy.images:,} images of "
            f"{low.value} against {high.accuracy.value:.1%} on the {high.accuracy.images:,} of {high.value} "
            f"(p = {self.gap.corrected_p:.2g}, corrected for all columns); their balanced accuracies are "
            f"{low.balanced_accuracy:.1%} and {high.balanced_accuracy:.1%}."
        )


def columns_by_score(
    slicings: Sequence[Slicing], indices: Int64[np.ndarray, " images"], scored: ScoredImages, sets: Sets | None
) -> list[Column]:
    """The scores of each value of each column; `indices` are the places of the scored images in the slicings."""
    columns = [_column(slicing, slicing.codes[indices], scored, sets) for slicing in slicings]
    corrected = holm([column.gap.p if column.gap else None for column in columns])
    return [
        replace(column, gap=replace(column.gap, corrected_p=p)) if column.gap and p is not None else column
        for column, p in zip(columns, corrected, strict=True)
    ]


def subgroup_facts(columns: Sequence[Column], left_out: dict[str, str]) -> dict[str, object]:
    """The part of report.json and evaluation.json."""
    return {
        "columns": [
            asdict(column) | {"subgroups": [asdict(each) | {"compared": each.compared} for each in column.subgroups]}
            for column in columns
        ],
        "left_out": left_out,
    }


def subgroup_warnings(columns: Sequence[Column]) -> Iterator[str]:
    """A sentence for each column whose largest gap chance does not explain."""
    return (column.warning for column in columns if column.warning)


def _column(slicing: Slicing, codes: np.ndarray, scored: ScoredImages, sets: Sets | None) -> Column:
    right = scored.probabilities.argmax(1) == scored.labels
    held = None if sets is None else sets[np.arange(len(right)), scored.labels]
    subgroups = tuple(
        _subgroup(value, codes == code, scored, (right, held)) for code, value in enumerate(slicing.values)
    )
    return Column(
        name=slicing.column, binned=slicing.binned, subgroups=subgroups, gap=_gap(subgroups, codes, right, scored)
    )


def _subgroup(
    value: str, of_value: np.ndarray, scored: ScoredImages, outcomes: tuple[np.ndarray, np.ndarray | None]
) -> Subgroup:
    right, held = outcomes
    labels, probabilities = scored.labels[of_value], scored.probabilities[of_value]
    components = scored.components[of_value]
    every = np.ones(len(labels), bool)
    any_image = len(labels) > 0
    return Subgroup(
        value=value,
        accuracy=rate(right[of_value], every, components),
        balanced_accuracy=_balanced_accuracy(labels, probabilities.argmax(1)) if any_image else None,
        balanced_accuracy_interval=balanced_accuracy_interval(labels, probabilities, components) if any_image else None,
        expected_calibration_error=expected_calibration_error(labels, probabilities) if any_image else None,
        coverage=None if held is None else rate(held[of_value], every, components),
    )


def _balanced_accuracy(labels: np.ndarray, predicted: np.ndarray) -> float:
    return float(recall_score(labels, predicted, labels=np.unique(labels), average="macro", zero_division=0))


def _gap(
    subgroups: Sequence[Subgroup], codes: np.ndarray, right: np.ndarray, scored: ScoredImages
) -> SubgroupGap | None:
    compared = {code: each for code, each in enumerate(subgroups) if each.compared}
    if len(compared) < 2:
        return None
    among = np.isin(codes, list(compared))
    p = permutation_p(right[among], codes[among], scored.components[among], scored.labels[among])
    ordered = sorted(compared.values(), key=lambda each: each.accuracy.value or 0)
    lowest, highest = ordered[0], ordered[-1]
    difference = (highest.accuracy.value or 0) - (lowest.accuracy.value or 0)
    return SubgroupGap(lowest=lowest.value, highest=highest.value, difference=difference, p=p, corrected_p=p)


def permutation_p(
    right: Bool[np.ndarray, " images"],
    codes: Int64[np.ndarray, " images"],
    components: Int64[np.ndarray, " images"],
    labels: Int64[np.ndarray, " images"],
) -> float:
    """How often shuffled values have an accuracy gap as large as the values `codes`; at least 1 in 2,001.

    Values are shuffled among images of the same classes, so that a site is no worse for having more of a hard class.
    Images of one component are not independent. Where they share one value, values are shuffled among the components
    that hold the classes in the same shares. Otherwise the values of a whole component are, among those with as many
    images of each class, and within it among its images of one class. Where nothing can be exchanged, p is 1.
    """
    rng = np.random.default_rng(0)
    _, values = np.unique(codes, return_inverse=True)
    order = np.lexsort((labels, components))
    values, right, labels, components = values[order], right[order], labels[order], components[order]
    starts = np.flatnonzero(np.r_[True, np.diff(components) > 0])
    sizes = np.diff(np.r_[starts, len(order)])
    held = np.stack([np.add.reduceat((labels == label).astype(int), starts) for label in np.unique(labels)], axis=1)
    observed = _largest_gap(values, right, np.ones(len(right)))
    if (np.minimum.reduceat(values, starts) == np.maximum.reduceat(values, starts)).all():
        hits, alike = np.add.reduceat(right.astype(float), starts), held // np.gcd.reduce(held, axis=1, keepdims=True)
        weights, outcomes, values, starts = sizes, hits, values[starts], np.arange(len(starts))
        within = None
    else:
        weights, outcomes, alike = np.ones(len(right)), right, held
        within = np.cumsum(np.r_[True, (np.diff(components) > 0) | (np.diff(labels) != 0)])
    lengths = np.diff(np.r_[starts, len(values)])
    kinds, kind = np.unique(alike, axis=0, return_inverse=True)
    members = [np.flatnonzero(kind.ravel() == number) for number in range(len(kinds))]
    places = [starts[chosen][:, np.newaxis] + np.arange(lengths[chosen][0]) for chosen in members if len(chosen) > 1]
    gaps = [_largest_gap(_shuffled(values, places, within, rng), outcomes, weights) for _ in range(PERMUTATIONS)]
    return float((1 + (np.array(gaps) >= observed - 1e-12).sum()) / (1 + PERMUTATIONS))


def _shuffled(
    values: np.ndarray, places: Sequence[np.ndarray], within: np.ndarray | None, rng: np.random.Generator
) -> np.ndarray:
    """`places`: of the components that may be exchanged with one another, a row a component.

    `within` numbers the images of one class and component, in order; None where a component has one value.
    """
    shuffled = values.copy()
    for rows in places:
        shuffled[rows] = rng.permutation(values[rows])
    return shuffled if within is None else shuffled[np.argsort(within + rng.random(len(values)))]


def _largest_gap(values: np.ndarray, hits: np.ndarray, sizes: np.ndarray) -> float:
    accuracy = np.bincount(values, weights=hits) / np.bincount(values, weights=sizes)
    return float(accuracy.max() - accuracy.min())
