"""ROC and precision-recall curves of each class against all others, with bands of resamples."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64
from sklearn.metrics import average_precision_score, roc_auc_score

from training.metrics.classification import ScoredImages
from training.metrics.intervals.proportions import LEVEL, wilson
from training.metrics.intervals.resampling import resamples

SHARES = np.linspace(0, 1, 101)
"""The places at which curves are read. At share 0 there is no precision: nothing need be decided yes."""
DECIMALS = 4


@dataclass(frozen=True, kw_only=True)
class Band:
    """A curve at `SHARES` with the limits of its 95 % interval at each; None where it is undefined."""

    value: list[float | None]
    low: list[float | None]
    high: list[float | None]


@dataclass(frozen=True, kw_only=True)
class ClassCurves:
    """The curves of the decision for one class by its probability."""

    name: str
    images: int
    """Number of images of the class; not none, and not all."""
    share: float
    """Share of all images that are of the class."""
    roc_auc: float
    average_precision: float
    sensitivity: Band
    """At shares of the other images that are decided yes: the ROC curve."""
    precision: Band
    """At shares of the class that are decided yes: the precision-recall curve, without interpolation."""


def class_curves(
    scored: ScoredImages, classes: tuple[str, ...], shown: Sequence[int], *, seed: int = 0
) -> list[ClassCurves]:
    """The curves of the classes `shown`; some images must be of each, and others not."""
    counts = np.bincount(scored.labels, minlength=len(classes))
    decisions = [_Ranked(scored, label) for label in shown]
    curves = [ranked.curves(np.ones((1, len(scored.labels)))) for ranked in decisions]
    replicates: list[list[np.ndarray]] = [[] for _ in decisions]
    for weights in resamples(scored.components, np.random.default_rng(seed)):
        for ranked, resampled in zip(decisions, replicates, strict=True):
            resampled.append(ranked.curves(weights))
    return [
        ClassCurves(
            name=classes[label],
            images=int(counts[label]),
            share=float(counts[label] / counts.sum()),
            roc_auc=float(roc_auc_score(scored.labels == label, scored.probabilities[:, label])),
            average_precision=float(average_precision_score(scored.labels == label, scored.probabilities[:, label])),
            **_bands(scored, label, curve[:, 0], np.concatenate(resampled, axis=1)),
        )
        for label, curve, resampled in zip(shown, curves, replicates, strict=True)
    ]


class _Ranked:
    """The images by falling probability of one class; those of equal probability are decided together."""

    def __init__(self, scored: ScoredImages, label: int) -> None:
        of_class = scored.probabilities[:, label]
        self._order = np.argsort(-of_class, kind="stable")
        ranked = of_class[self._order]
        self._ties = np.flatnonzero(np.r_[True, ranked[1:] != ranked[:-1]])
        self._is_class = scored.labels[self._order] == label

    def curves(self, weights: Float64[np.ndarray, "resamples images"]) -> Float64[np.ndarray, "2 resamples shares"]:
        """Sensitivity at each share of false alarms, and precision at each sensitivity."""
        ordered = weights[:, self._order]
        hits = np.cumsum(np.add.reduceat(ordered * self._is_class, self._ties, axis=1), axis=1)
        alarms = np.cumsum(np.add.reduceat(ordered * ~self._is_class, self._ties, axis=1), axis=1)
        values = np.full((2, len(weights), len(SHARES)), np.nan)
        for row, (hit, alarm) in enumerate(zip(hits, alarms, strict=True)):
            if not hit[-1] or not alarm[-1]:
                continue  # a resample without the class, or with nothing else
            sensitivity, false_alarms = hit / hit[-1], alarm / alarm[-1]
            values[0, row] = np.interp(SHARES, np.r_[0, false_alarms], np.r_[0, sensitivity])
            places = np.searchsorted(sensitivity, SHARES[1:])
            values[1, row, 1:] = hit[places] / (hit[places] + alarm[places])
        return values


def _bands(scored: ScoredImages, label: int, curves: np.ndarray, replicates: np.ndarray) -> dict[str, Band]:
    """Both bands, nowhere narrower than Wilson's interval of as many draws as there are components.

    A curve at 0 or 1 has no spread to resample. Precision is a share of what is decided yes at that sensitivity.
    """
    is_class = scored.labels == label
    draws_an_image = len(np.unique(scored.components)) / len(scored.labels)
    of_class = np.full(len(SHARES), len(np.unique(scored.components[is_class])), float)
    with np.errstate(invalid="ignore"):
        decided = SHARES * is_class.sum() * draws_an_image / curves[1]
    return {
        "sensitivity": _band(curves[0], replicates[0], of_class),
        "precision": _band(curves[1], replicates[1], decided),
    }


def _band(curve: np.ndarray, replicates: np.ndarray, draws: np.ndarray) -> Band:
    defined = ~np.isnan(curve)
    limits = np.full((2, len(SHARES)), np.nan)
    low, high = np.nanquantile(replicates[:, defined], [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0)
    widest = wilson(curve[defined], draws[defined])
    limits[:, defined] = np.minimum(low, widest[0]), np.maximum(high, widest[1])
    return Band(value=_rounded(curve), low=_rounded(limits[0]), high=_rounded(limits[1]))


def _rounded(values: np.ndarray) -> list[float | None]:
    return [None if np.isnan(value) else round(float(value), DECIMALS) for value in values]
