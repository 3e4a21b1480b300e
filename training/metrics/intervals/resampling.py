"""Scores of bootstrap resamples: of what was drawn independently, images or the groups they belong to."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Float64, Int64

from training.metrics.classification import Labels, Probabilities, log_losses

RESAMPLES = 1000
CHUNK = 100

ResampleCounts = Float64[np.ndarray, "resamples images"]


@dataclass(frozen=True, kw_only=True)
class Replicates:
    """The scores of every resample, `[resamples]` or `[resamples, classes]`; NaN where one is undefined."""

    accuracy: np.ndarray
    balanced_accuracy: np.ndarray
    macro_f1: np.ndarray
    roc_auc: np.ndarray
    log_loss: np.ndarray
    recall: np.ndarray
    precision: np.ndarray


class ClassCounts(NamedTuple):
    """Images of each class in each resample, all `[resamples, classes]`.

    No confusion matrices: of 1,000 classes those of all resamples would take 8 GB.
    """

    right: np.ndarray
    labelled: np.ndarray
    predicted: np.ndarray

    @classmethod
    def of(cls, labels: Labels, probabilities: Probabilities, weights: ResampleCounts) -> "ClassCounts":
        """Counts by the weight of each image."""
        predicted, classes = probabilities.argmax(1), probabilities.shape[1]
        outcome = 2 * labels + (predicted == labels)
        wrong_right = np.stack([np.bincount(outcome, row, 2 * classes) for row in weights]).reshape(-1, classes, 2)
        return cls(
            right=wrong_right[:, :, 1],
            labelled=wrong_right.sum(2),
            predicted=np.stack([np.bincount(predicted, row, classes) for row in weights]),
        )

    @property
    def recall(self) -> np.ndarray:
        """Of each class in each resample; NaN for a class that the resample lacks."""
        recall: np.ndarray
        with np.errstate(invalid="ignore"):
            recall = self.right / self.labelled
        return recall

    @property
    def balanced_accuracy(self) -> np.ndarray:
        """Of each resample."""
        return _mean(self.recall, self.labelled > 0)


def replicates(labels: Labels, probabilities: Probabilities, components: np.ndarray, seed: int) -> Replicates:
    """The scores of resamples that components and seed alone decide: two models get the same ones."""
    losses = log_losses(labels, probabilities)
    chunks, areas, loss = [], [], []
    for weights in resamples(components, np.random.default_rng(seed)):
        chunks.append(ClassCounts.of(labels, probabilities, weights))
        areas.append(roc_auc(labels, probabilities, weights))
        loss.append(weights @ losses / weights.sum(1))
    counts, area = ClassCounts(*map(np.concatenate, zip(*chunks, strict=True))), np.concatenate(areas)
    with np.errstate(invalid="ignore"):  # a class that a resample lacks has no score in it
        precision = counts.right / counts.predicted
        f1 = 2 * counts.right / (counts.predicted + counts.labelled)
    return Replicates(
        accuracy=counts.right.sum(1) / counts.labelled.sum(1),
        balanced_accuracy=counts.balanced_accuracy,
        macro_f1=_mean(f1, counts.labelled > 0),
        roc_auc=_mean(area, ~np.isnan(area)),
        log_loss=np.concatenate(loss),
        recall=counts.recall,
        precision=precision,
    )


def resamples(components: Int64[np.ndarray, " images"], rng: np.random.Generator) -> Iterator[ResampleCounts]:
    """How often each image is drawn, a row a resample, in chunks of 100; images of one component together."""
    _, index = np.unique(components, return_inverse=True)
    for drawn in draws(index.max() + 1, rng):
        yield drawn[:, index]


def draws(count: int, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """How often each of `count` components is drawn, a row a resample.

    Drawn one by one and counted: of 40,000 components that takes a sixth of the time of `Generator.multinomial`.
    """
    for _ in range(RESAMPLES // CHUNK):
        drawn = rng.integers(count, size=(CHUNK, count), dtype=np.int32)
        yield np.stack([np.bincount(row, minlength=count) for row in drawn]).astype(np.float64)


def roc_auc(labels: Labels, probabilities: Probabilities, weights: ResampleCounts) -> np.ndarray:
    """Area under the ROC curve `[resamples, classes]`, one class against the rest: Mann-Whitney, weighted."""
    areas = np.full((len(weights), probabilities.shape[1]), np.nan)
    drawn, total = np.zeros((len(weights), len(labels) + 1)), weights.sum(1)
    for label in np.unique(labels):
        order = np.argsort(probabilities[:, label], kind="stable")
        scores, mine = probabilities[order, label], np.flatnonzero(labels[order] == label)
        positive = weights[:, order[mine]]
        # The images drawn up to each place in this order: of all, and of the class.
        np.cumsum(weights[:, order], axis=1, out=drawn[:, 1:])
        drawn_mine = np.cumsum(np.c_[np.zeros(len(weights)), positive], axis=1)
        below = np.zeros_like(positive)
        for side in ("left", "right"):
            places = np.searchsorted(scores, scores[mine], side)
            below += drawn[:, places] - drawn_mine[:, np.searchsorted(mine, places)]
        count = positive.sum(1)
        with np.errstate(invalid="ignore"):
            areas[:, label] = (positive * below).sum(1) / 2 / (count * (total - count))
    return areas


def _mean(values: np.ndarray, where: np.ndarray) -> np.ndarray:
    """Mean over the classes that a resample holds; NaN where it holds none."""
    counts = where.sum(1)
    sums = np.where(where, np.nan_to_num(values), 0).sum(1)
    return np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)
