"""95 % intervals of scores by bootstrap over what was drawn independently: images, or the groups they belong to."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64, Int64
from scipy.stats import binomtest

from training.scores import Labels, Probabilities

RESAMPLES = 1000
CHUNK = 100
LEVEL = 0.95

Interval = tuple[float, float]
Weights = Float64[np.ndarray, "resamples images"]


@dataclass(frozen=True, kw_only=True)
class Intervals:
    """Percentile intervals (Efron and Tibshirani 1993, chapter 13); None where a score is undefined.

    Accuracy, recall and precision are shares, and a share of 0 or 1 has no spread to resample: their intervals are
    widened to Wilson's (1927), counted in components.
    """

    accuracy: Interval
    balanced_accuracy: Interval
    macro_f1: Interval
    roc_auc: Interval | None
    recall: dict[str, Interval | None]
    precision: dict[str, Interval | None]


def bootstrap(
    labels: Labels,
    probabilities: Probabilities,
    components: Int64[np.ndarray, " images"],
    classes: tuple[str, ...],
    *,
    seed: int = 0,
) -> Intervals:
    """Intervals of a split's scores; all images of one component are drawn together."""
    count = len(classes)
    cells = labels * count + probabilities.argmax(1)
    confusions, areas = [], []
    for weights in _resamples(components, np.random.default_rng(seed)):
        confusions += [np.bincount(cells, row, count * count).reshape(count, count) for row in weights]
        areas.append(_roc_auc(labels, probabilities, weights))
    confusion = np.stack(confusions)
    hits = np.diagonal(confusion, axis1=1, axis2=2)
    with np.errstate(invalid="ignore"):  # a class that a resample lacks has no score in it
        recall, precision = hits / confusion.sum(2), hits / confusion.sum(1)
        f1 = 2 * hits / (confusion.sum(1) + confusion.sum(2))
    present = confusion.sum(2) > 0
    predicted = probabilities.argmax(1)
    right = predicted == labels

    def widened(values: np.ndarray, concerned: np.ndarray) -> Interval | None:
        if not concerned.any():
            return None
        draws = len(np.unique(components[concerned]))
        wilson = binomtest(round(right[concerned].mean() * draws), draws).proportion_ci(LEVEL, "wilson")
        low, high = _interval(values[~np.isnan(values)])
        return min(low, float(wilson.low)), max(high, float(wilson.high))

    accuracy = widened(hits.sum(1) / confusion.sum((1, 2)), np.ones(len(labels), bool))
    assert accuracy is not None
    area = np.concatenate(areas)
    return Intervals(
        accuracy=accuracy,
        balanced_accuracy=_interval(_mean(recall, present)),
        macro_f1=_interval(_mean(f1, present)),
        roc_auc=_defined(_mean(area, ~np.isnan(area))),
        recall={name: widened(recall[:, label], labels == label) for label, name in enumerate(classes)},
        precision={name: widened(precision[:, label], predicted == label) for label, name in enumerate(classes)},
    )


def _resamples(components: np.ndarray, rng: np.random.Generator) -> Iterator[Weights]:
    """How often each image is drawn, a row a resample."""
    _, index = np.unique(components, return_inverse=True)
    draws = index.max() + 1
    for _ in range(RESAMPLES // CHUNK):
        yield rng.multinomial(draws, np.full(draws, 1 / draws), size=CHUNK)[:, index].astype(np.float64)


def _roc_auc(labels: Labels, probabilities: Probabilities, weights: Weights) -> np.ndarray:
    """Area under the ROC curve `[resamples, classes]`, one class against the rest: Mann-Whitney, weighted."""
    areas = np.full((len(weights), probabilities.shape[1]), np.nan)
    for label in np.unique(labels):
        order = np.argsort(probabilities[:, label], kind="stable")
        scores = probabilities[order, label]
        ties = np.flatnonzero(np.r_[True, scores[1:] != scores[:-1]])
        mine = labels[order] == label
        positive = np.add.reduceat(weights[:, order] * mine, ties, axis=1)
        negative = np.add.reduceat(weights[:, order] * ~mine, ties, axis=1)
        below = np.cumsum(negative, axis=1) - negative / 2
        with np.errstate(invalid="ignore"):
            areas[:, label] = (positive * below).sum(1) / (positive.sum(1) * negative.sum(1))
    return areas


def _mean(values: np.ndarray, where: np.ndarray) -> np.ndarray:
    """Mean over the classes that a resample holds; NaN where it holds none."""
    counts = where.sum(1)
    sums = np.where(where, np.nan_to_num(values), 0).sum(1)
    return np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)


def _defined(values: np.ndarray) -> Interval | None:
    kept = values[~np.isnan(values)]
    return _interval(kept) if len(kept) else None


def _interval(values: np.ndarray) -> Interval:
    low, high = np.quantile(values, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)
