"""The answers of all folds, put together: a row for each image, of the model that has not seen it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, variance

import numpy as np
from jaxtyping import Int64
from scipy.stats import t

from serving.contract.files.names import MODEL
from training.data.dataset import LabelledImages, training_division
from training.data.inspection.image_set import ImageSet
from training.engine.runs import PREDICTIONS
from training.errors import DataError
from training.metrics.classification import TITLES, Labels, Probabilities, Scores, score
from training.metrics.intervals.proportions import LEVEL, Interval
from training.promotion.champion import card_of
from training.report.predictions import read_predictions


@dataclass(frozen=True, kw_only=True)
class OutOfFold:
    """The answers to all images that the folds' test splits hold, in the order of the data."""

    indices: Int64[np.ndarray, " answered"]
    labels: Labels
    probabilities: Probabilities
    fold: Int64[np.ndarray, " answered"]
    """Index of the fold whose test split holds the image."""
    runs: Sequence[Path]

    def by_fold(self, classes: tuple[str, ...]) -> list[Scores]:
        """The scores of each fold's own test split."""
        folds = range(len(self.runs))
        return [score(self.labels[self.fold == i], self.probabilities[self.fold == i], classes) for i in folds]


@dataclass(frozen=True, kw_only=True)
class FoldMean:
    """A score's mean over the folds, and the mean that trainings on other data of this kind and size may have."""

    mean: float
    interval: Interval


def collect_answers(runs: Sequence[Path], images: LabelledImages) -> OutOfFold:
    """Read the answers of finished runs, which have divided the same images.

    Raises DataError if they have not: some answer images that the data has no more, or that another one answers, too.
    """
    place = {key: index for index, key in enumerate(images.keys)}
    indices, probabilities, fold = [], [], []
    for number, run in enumerate(runs):
        recorded = read_predictions(run / PREDICTIONS, images.classes)
        if recorded is None or any(key not in place for key in recorded.keys):
            raise DataError(f"{run}: its answers are to other images than the data has now; --name begins anew")
        indices += [place[key] for key in recorded.keys]
        probabilities.append(recorded.probabilities)
        fold += [number] * len(recorded.keys)
    order = np.argsort(indices, kind="stable")
    ascending = np.array(indices, np.int64)[order]
    if (twice := ascending[1:][np.diff(ascending) == 0]).size:
        raise DataError(
            f"{images.keys[twice[0]]} is answered by two of {len(runs)} folds, so they are of other data; "
            "--name begins anew"
        )
    return OutOfFold(
        indices=ascending,
        labels=images.labels[ascending],
        probabilities=np.concatenate(probabilities)[order],
        fold=np.array(fold, np.int64)[order],
        runs=runs,
    )


def check_images(runs: Sequence[Path], images: ImageSet) -> None:
    """Raise DataError where a finished run was trained on other images, labels or splits than these.

    Names alone do not tell: a file may be another picture by now, and rows of an array have a number for a name.
    """
    for run in runs:
        if training_division(images, card_of(run / MODEL)) is None:
            raise DataError(f"{run}: images or labels have changed since it was trained; --name begins anew")


def labels_then(runs: Sequence[Path], images: LabelledImages) -> Labels:
    """The labels that the images had when these folds were made, before `--corrections`."""
    place = {key: index for index, key in enumerate(images.keys)}
    labels = images.labels.copy()
    for run in runs:
        if recorded := read_predictions(run / PREDICTIONS, images.classes):
            labels[[place[key] for key in recorded.keys]] = recorded.labels
    return labels


def fold_means(by_fold: Sequence[Scores]) -> dict[str, FoldMean | None]:
    """The mean of each headline score over the folds, with its interval; None where a fold has no such score."""
    values = {name: [getattr(scores, name) for scores in by_fold] for name in TITLES}
    return {
        name: None if None in each else FoldMean(mean=fmean(each), interval=corrected_interval(each))
        for name, each in values.items()
    }


def corrected_interval(values: Sequence[float]) -> Interval:
    """95 % interval of a score over k folds, by the corrected variance of Nadeau and Bengio (2003).

    Two folds share most of their training images, so the k scores are not independent and var / k is too small. Adding
    n_test / n_train = 1 / (k - 1) to 1 / k makes up for it; then Student's t with k - 1 degrees of freedom. It includes
    what another draw of training images changes, unlike an interval over the test images of one model.
    """
    k = len(values)
    half = t.ppf((1 + LEVEL) / 2, k - 1) * math.sqrt(variance(values) * (1 / k + 1 / (k - 1)))
    return fmean(values) - half, fmean(values) + half
