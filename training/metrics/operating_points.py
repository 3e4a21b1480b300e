"""Operating points: decisions for one class against all others, by thresholds that the validation split sets.

`--operate CLASS:SCORE=VALUE` asks for one. The test split never chooses a threshold: it says what decisions are worth.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, cast, get_args

import numpy as np
from jaxtyping import Bool, Float32

from serving.contract.card.decisions import DecisionScore, OperatingPoint
from serving.contract.listing import clean
from training.data.sources.source import shortened
from training.errors import ConfigError
from training.metrics.classification import Labels, Probabilities, ScoredImages, between
from training.metrics.intervals.bootstrap import Rate, rate

FEW = 20
"""Fewer validation images than these make a threshold that other images may not keep to; the report warns."""


class TargetScore(NamedTuple):
    """The score that the decision for a class must reach on the validation split."""

    label: str
    score: DecisionScore
    target: float

    @classmethod
    def of(cls, point: OperatingPoint) -> "TargetScore":
        """What an operating point was chosen for."""
        return cls(point.label, point.score, point.target)


@dataclass(frozen=True, kw_only=True)
class Rates:
    """What a decision does on a split."""

    sensitivity: Rate
    """Share of the images of the class that is decided yes."""
    specificity: Rate
    """Share of the other images that is decided no."""
    precision: Rate
    """Share of the class among the images decided yes."""

    def of(self, score: DecisionScore) -> Rate:
        """The rate of this name."""
        return cast(Rate, getattr(self, score))


@dataclass(frozen=True, kw_only=True)
class MeasuredPoint:
    """An operating point and what it does, beside a decision by the most probable class."""

    point: OperatingPoint
    validation: Rates | None
    """None where the images of the validation split are not at hand."""
    rates: Rates
    by_label: Rates

    @property
    def cost(self) -> str:
        """How many of the measured images are decided yes, rightly and wrongly, in a sentence."""
        hits, alarms = self.rates.sensitivity, self.rates.specificity
        detected = f"{_count(hits)} of the {hits.images:,} images of {self.point.label}"
        return f"Decided yes are {detected}, and {alarms.images - _count(alarms):,} of the {alarms.images:,} others."

    @property
    def misses_target(self) -> bool:
        """Whether the measured score excludes the target: the upper limit of its interval is below it."""
        interval = self.rates.of(self.point.score).interval
        return interval is not None and interval[1] < self.point.target


def _count(rate: Rate) -> int:
    """The images that make the share."""
    return round((rate.value or 0) * rate.images)


def parse(text: str) -> TargetScore:
    """A target as it is written. Raises ConfigError."""
    name, _, value = clean(text).rpartition("=")  # a class may have = and : in its name
    label, _, score = name.rpartition(":")
    try:
        target = float(value)
    except ValueError:
        target = 0.0
    if not label or score not in get_args(DecisionScore) or not 0 < target < 1:
        raise ConfigError(
            f"--operate {text}: expected CLASS:SCORE=VALUE, SCORE one of {', '.join(get_args(DecisionScore))} and "
            "VALUE above 0 and below 1"
        )
    return TargetScore(label, cast(DecisionScore, score), target)


def parse_all(texts: Sequence[str]) -> list[TargetScore]:
    """Targets as they are written. Raises ConfigError, also for two of one class."""
    targets = [parse(text) for text in texts]
    labels = [wanted.label for wanted in targets]
    if twice := sorted({label for label in labels if labels.count(label) > 1}):
        raise ConfigError(f"--operate: expected each class once, got {', '.join(twice)} several times")
    return targets


def check_names(texts: Sequence[str], classes: Sequence[str]) -> None:
    """Raise ConfigError for a class that the data does not have."""
    for text, wanted in zip(texts, parse_all(texts), strict=True):
        if wanted.label not in classes:
            raise ConfigError(f"--operate {text}: there is no class {wanted.label!r}; there are {shortened(classes)}")


def check_classes(texts: Sequence[str], classes: Sequence[str], validation: Labels, images_of: str) -> None:
    """Raise ConfigError for a class that the data does not have, or of which all or no validation image is.

    `validation` are the labels of the validation split of the data `images_of`.
    """
    check_names(texts, classes)
    for text, wanted in zip(texts, parse_all(texts), strict=True):
        count = int((validation == classes.index(wanted.label)).sum())
        if count in (0, len(validation)):
            raise ConfigError(
                f"--operate {text}: the validation split of {images_of} has {count:,} images of {wanted.label} and "
                f"{len(validation) - count:,} others; expected some of both"
            )


def choose(
    targets: Iterable[TargetScore], classes: Sequence[str], labels: Labels, probabilities: Probabilities
) -> tuple[OperatingPoint, ...]:
    """The operating points that reach these targets on the validation split; a target that none reaches has none."""
    points = []
    for wanted in targets:
        label = classes.index(wanted.label)
        threshold = threshold_for(wanted, probabilities[:, label], labels == label)
        if threshold is not None:
            points.append(OperatingPoint(**wanted._asdict(), threshold=threshold))
    return tuple(points)


def threshold_for(
    wanted: TargetScore, of_class: Float32[np.ndarray, " images"], is_class: Bool[np.ndarray, " images"]
) -> float | None:
    """The threshold that reaches the target with the least loss; None where none does.

    For a sensitivity that is the largest one, for a specificity or a precision the smallest. All numbers between two
    neighbouring probabilities decide alike; of these it is the one with the fewest decimals near the middle. There must
    be images of the class and others.
    """
    values, index = np.unique(-of_class.astype(np.float64), return_inverse=True)
    values = -values
    # Place i: yes for the i largest of the different probabilities.
    hits, all_yes = (
        np.r_[0, np.cumsum(np.bincount(index, weights=images))] for images in (is_class, np.ones(len(is_class)))
    )
    alarms, others = all_yes - hits, (~is_class).sum()
    with np.errstate(invalid="ignore"):
        scores = {
            "sensitivity": hits / is_class.sum(),
            "specificity": (others - alarms) / others,
            "precision": hits / all_yes,
        }
    [reached] = np.nonzero(scores[wanted.score] >= wanted.target)
    if not len(reached):
        return None
    place = reached[0 if wanted.score == "sensitivity" else -1]
    highest = 1.0 if values[0] < 1 else 2.0  # above every probability, where none may be decided yes
    bounds = np.r_[highest, values, 0.0]
    return between(float(bounds[place + 1]), float(bounds[place]))


def measure(
    point: OperatingPoint, classes: Sequence[str], scored: ScoredImages, validation: ScoredImages | None
) -> MeasuredPoint:
    """What an operating point does to scored images, and to those that chose its threshold."""
    label = classes.index(point.label)

    def rates(images: ScoredImages, *, by_label: bool = False) -> Rates:
        of_class = images.probabilities[:, label]
        decisions = images.probabilities.argmax(1) == label if by_label else point.decides(of_class)
        return _rates(decisions, images.labels == label, images.components)

    return MeasuredPoint(
        point=point,
        validation=rates(validation) if validation else None,
        rates=rates(scored),
        by_label=rates(scored, by_label=True),
    )


def _rates(decisions: np.ndarray, is_class: np.ndarray, components: np.ndarray) -> Rates:
    right = decisions == is_class
    return Rates(
        sensitivity=rate(right, is_class, components),
        specificity=rate(right, ~is_class, components),
        precision=rate(right, decisions, components),
    )
