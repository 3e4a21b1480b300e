"""How many more: images, by a power law through the learning curve; seeds, by the spread of paired differences.

Error falls with the number of training images as floor + scale n^-rate (Hestness et al. 2017, arXiv:1712.00409). The
law is fitted to the runs of a study that differ in --images-per-class; its interval is a bootstrap over seeds. Where
the law says nothing, that is said instead of a number.
"""

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import OptimizeWarning, curve_fit
from scipy.stats import nct, t

from training.metrics.intervals.proportions import LEVEL, Interval, wilson

GAIN = 0.05
"""Gain of a score for which the number of images is stated: 5 points."""
MOST_TIMES = 20
"""A law is not trusted further than this many times the most images that it was fitted to."""
FEWEST_SIZES = 3
RESAMPLES = 200
POWER = 0.8
MOST_SEEDS = 100
MOST_TESTED = 1000
"""More than the 381 that a recall of one half needs."""

Curve = Mapping[int, Mapping[int, float]]
"""By seed, the score by number of training images."""


@dataclass(frozen=True, kw_only=True)
class MoreImages:
    """How many more training images raise a score by 5 points; None, and the reason, where the runs do not say."""

    images: int
    """The most that a run has had."""
    score: float | None
    """By the law, with these."""
    more: int | None
    interval: Interval | None
    reason: str = ""


def more_images(curve: Curve) -> MoreImages:
    """Fit the law to scores between 0 and 1, of every seed at each size."""
    most = max((size for of_seed in curve.values() for size in of_seed), default=0)
    sizes = max(map(len, curve.values()), default=0)  # of one seed: of all images, seeds have a few more or less
    if sizes < FEWEST_SIZES or len(curve) < 2:
        given = f"{sizes} and {len(curve)}"
        return _unknown(most, f"a law needs {FEWEST_SIZES} numbers of images and 2 seeds, the runs have {given}")
    law = _fit(list(curve.values()))
    if law is None or (images_needed := _needed(law, most)) is None:
        return _unknown(most, "the curve is flat, or its end too near for 5 points more")
    score = 1 - float(_error(np.array(most), *law))
    rng, seeds = np.random.default_rng(0), list(curve.values())
    drawn = [[seeds[i] for i in rng.integers(0, len(seeds), len(seeds))] for _ in range(RESAMPLES)]
    laws = [_fit(each) for each in drawn]
    needed = [resampled and _needed(resampled, most) for resampled in laws]
    with np.errstate(invalid="ignore"):  # between two that are infinite
        low, high = np.quantile([math.inf if n is None else n for n in needed], [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    if not math.isfinite(high):
        return _unknown(most, "another draw of the seeds would make the curve flat")
    return MoreImages(images=most, score=score, more=round(images_needed), interval=(float(low), float(high)))


def more_tested(recall: float, images: int) -> int:
    """How many more test images of a class narrow Wilson's 95 % interval of its recall to 5 points each way.

    0 where `images` are enough.
    """
    counts = np.arange(1, MOST_TESTED, dtype=np.float64)
    low, high = wilson(np.full(len(counts), recall), counts)
    enough = int(counts[np.argmax((high - low) / 2 <= GAIN)])
    return max(enough - images, 0)


def more_seeds(difference: float, interval: Interval, seeds: int, comparisons: int) -> int | None:
    """Seeds that decide a difference with a probability of 80 %, beyond those that there are; None: more than 100.

    By Student's paired test, if difference and spread are as estimated; `comparisons` are those of the study, for all
    of which the p value is corrected (Bonferroni's method, which asks for as much as Holm's or more).
    """
    alpha = (1 - LEVEL) / max(comparisons, 1)
    deviation = (interval[1] - interval[0]) / 2 / t.ppf((1 + LEVEL) / 2, seeds - 1) * math.sqrt(seeds)
    if difference == 0 or deviation == 0:
        return None
    for count in range(seeds + 1, seeds + MOST_SEEDS + 1):
        limit = t.ppf(1 - alpha / 2, count - 1)
        shift = abs(difference) / deviation * math.sqrt(count)
        if nct.sf(limit, count - 1, shift) >= POWER:
            return count - seeds
    return None


def _error(images: np.ndarray, floor: float, scale: float, rate: float) -> np.ndarray:
    error: np.ndarray = floor + scale * images.astype(np.float64) ** -rate
    return error


def _fit(curves: Sequence[Mapping[int, float]]) -> tuple[float, float, float] | None:
    """Floor, scale and rate of the law; None where none fits."""
    sizes = np.array([size for of_seed in curves for size in of_seed], np.float64)
    errors = np.array([1 - score for of_seed in curves for score in of_seed.values()])
    if len(np.unique(sizes)) < FEWEST_SIZES:
        return None
    start = (max(errors.min() * 0.5, 1e-3), 1.0, 0.5)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", OptimizeWarning)  # without a covariance: the bootstrap gives the interval
        try:
            fitted, _ = curve_fit(_error, sizes, errors, start, bounds=((0, 0, 0.01), (1, np.inf, 2)), max_nfev=2000)
        except RuntimeError:
            return None
    floor, scale, rate = map(float, fitted)
    return floor, scale, rate


def _needed(law: tuple[float, float, float], most: int) -> float | None:
    """Images beyond `most` for 5 points more; None where the law does not reach it within 20 times as many."""
    floor, scale, rate = law
    target = float(_error(np.array(most), *law)) - GAIN
    if target <= floor:
        return None
    needed = ((target - floor) / scale) ** (-1 / rate)
    return needed - most if needed <= MOST_TIMES * most else None


def _unknown(most: int, reason: str) -> MoreImages:
    return MoreImages(images=most, score=None, more=None, interval=None, reason=reason)
