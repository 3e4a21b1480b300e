"""Differences between two levels of a study, paired over seeds, with 95 % intervals and p values (Student 1908)."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Literal

from scipy.special import stdtr, stdtrit

from training.metrics.intervals.proportions import LEVEL, Interval

Verdict = Literal["higher", "lower", "equal", "undecided", "no interval", "no spread", "not reached", "no runs"]
ROUNDING = 1e-9
"""Rounding error of the differences of equal scores, relative to them."""
Values = Mapping[tuple[int, tuple[str, ...]], float]
"""By seed and by the levels on the other axes."""


@dataclass(frozen=True, kw_only=True)
class LevelDifference:
    """The measure of a level minus that of the reference level, over runs that differ in nothing else."""

    level: str
    mean: float | None
    reference_mean: float | None
    value: float | None
    interval: Interval | None
    """Student's, over the seeds; None with one seed."""
    seeds: int
    p: float | None
    """P value of Student's paired test, two-sided; None with one seed, or when each seed has the same difference."""
    corrected_p: float | None = None
    """By Holm's method, for all comparisons of the study."""
    censored: int = 0
    """Runs of either level that got nowhere and have no value, so that the others are a choice of the better ones."""

    @property
    def verdict(self) -> Verdict:
        """What the evidence says of the level against the reference level."""
        if self.value is None:
            return "no runs"
        if self.censored:
            return "not reached"
        if self.interval is None:
            return "no interval"
        if self.p is None:
            return "no spread" if self.value else "equal"
        if self.corrected_p is None or self.corrected_p >= 1 - LEVEL:
            return "undecided"
        return "higher" if self.value > 0 else "lower"


def paired_difference(level: str, values: Values, reference: Values, *, exact: bool = False) -> LevelDifference:
    """Pair the values of the same seed and other levels; the mean for each seed, and its interval over the seeds.

    Differences without spread have a p value, of 0, where the measure is `exact` alone: scores of a hundred images tie.
    """
    pairs = sorted(values.keys() & reference.keys())
    if not pairs:
        return LevelDifference(level=level, mean=None, reference_mean=None, value=None, interval=None, seeds=0, p=None)
    seeds = sorted({seed for seed, _ in pairs})
    by_seed = [fmean(values[key] - reference[key] for key in pairs if key[0] == seed) for seed in seeds]
    return LevelDifference(
        level=level,
        mean=fmean(values[key] for key in pairs),
        reference_mean=fmean(reference[key] for key in pairs),
        value=fmean(by_seed),
        interval=student(by_seed) if len(seeds) > 1 else None,
        seeds=len(seeds),
        p=student_p(by_seed) if len(seeds) > 1 and any(by_seed) and (exact or _spread(by_seed)) else None,
    )


def _spread(values: Sequence[float]) -> bool:
    """Whether they differ by more than rounding."""
    return max(values) - min(values) > ROUNDING * max(map(abs, values))


def student(values: Sequence[float]) -> Interval:
    """The 95 % interval of the mean of two or more independent values (Student 1908)."""
    # Not by scipy.stats, which takes forty times as long: levels have many pairs.
    half = float(stdtrit(len(values) - 1, (1 + LEVEL) / 2)) * stdev(values) / math.sqrt(len(values))
    return fmean(values) - half, fmean(values) + half


def student_p(values: Sequence[float]) -> float:
    """The two-sided p value of the mean of two or more independent values, not all zero, against zero."""
    error = stdev(values) / math.sqrt(len(values))
    return float(2 * stdtr(len(values) - 1, -abs(fmean(values)) / error)) if error else 0.0
