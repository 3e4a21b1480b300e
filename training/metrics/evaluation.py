"""What a model predicts on a split of the data, and how good that is."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32
from scipy.special import softmax
from torch import nn

from serving.contract.card import Calibration, OperatingPoint
from training.data import class_balance
from training.data.dataset import Dataset
from training.data.sources.source import SPLITS, Split
from training.distributed import ALONE, Group
from training.errors import NonFiniteLoss
from training.metrics import calibration, classification, operating_points
from training.metrics.bootstrap import Intervals, bootstrap
from training.metrics.classification import Probabilities, Scores
from training.models import prediction
from training.models.normalization import Calibrate
from training.settled import SettledConfig

TRAINING_IMAGES_SCORED = 5_000
"""For the gap between training and validation, this many training images are scored without augmentation."""


def predict(model: nn.Module, dataset: Dataset, split: Split, group: Group = ALONE) -> Probabilities:
    """Probabilities `[images, classes]` of one split: the softmax of `compute_logits`."""
    return softmax(compute_logits(model, dataset, split, group), axis=1)


def compute_logits(
    model: nn.Module, dataset: Dataset, split: Split, group: Group = ALONE
) -> Float32[np.ndarray, "images classes"]:
    """Logits of one split; of the training split, of its first 5,000 images.

    Each process of a group predicts a part, and every process returns the whole. Raises NonFiniteLoss.
    """
    indices = dataset.splits[split][: TRAINING_IMAGES_SCORED if split == "train" else None]
    own = group.part(len(indices))
    logits = group.gather(prediction.logits(model, dataset.images, indices[own.start : own.stop]))
    if not np.isfinite(logits).all():
        raise NonFiniteLoss(f"the model gives values that are not finite on the {split} split")
    return logits


def score(dataset: Dataset, split: Split, probabilities: Probabilities) -> Scores:
    """Scores of the probabilities that `predict` returned for this split."""
    labels = dataset.labels[dataset.splits[split][: len(probabilities)]]
    return classification.score(labels, probabilities, dataset.classes)


@dataclass(frozen=True, kw_only=True)
class LeakFree:
    """Scores on the test images whose picture and group are in no other split."""

    scores: Scores
    intervals: Intervals


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """The calibrated model on every split; `uncalibrated` are its scores on the test split before calibration."""

    uncalibrated: Scores
    calibration: Calibration
    probabilities: dict[Split, Probabilities]
    scores: dict[Split, Scores]
    intervals: Intervals
    operating_points: tuple[OperatingPoint, ...]
    """Of --operate, where the validation split reaches what it demands."""
    leak_free: LeakFree | None
    """None where no test image leaks, and where each of them does."""
    own: Probabilities | None = None
    """What the model itself answers to the test images, where `probabilities` has the answers of the folds' models."""


def evaluate_best(model: nn.Sequential, learner: nn.Module, dataset: Dataset, config: SettledConfig) -> Evaluation:
    """Calibrate `model`, which gets one more layer for it, and score it.

    `dataset` is what `learner` takes, the part of the model that learned: images, or the features of a frozen body.
    Raises NonFiniteLoss.
    """
    logits = {split: compute_logits(learner, dataset, split) for split in SPLITS}
    val, test = dataset.splits["val"], dataset.splits["test"]
    bias: tuple[float, ...] = ()
    if config.balance == "bias":
        frequencies = class_balance.frequencies(dataset.labels[dataset.splits["train"]], len(dataset.classes))
        bias = calibration.fit_bias(dataset.labels[val], logits["val"], frequencies)
    calibrated = calibration.fit(
        dataset.labels[val], logits["val"], config.confidence_level, bias, by_class=config.sets == "class"
    )
    if calibrated.threshold is None:
        print(f"warning: {len(val)} validation images are too few for prediction sets at {calibrated.level:.0%}")
    demands = operating_points.parse_all(config.operate)
    device = next(model.parameters()).device
    model.append(Calibrate(calibrated).to(device))
    probabilities = {split: softmax(calibration.corrected(logits[split], calibrated), axis=1) for split in SPLITS}
    return Evaluation(
        uncalibrated=score(dataset, "test", softmax(logits["test"], axis=1)),
        calibration=calibrated,
        probabilities=probabilities,
        scores={split: score(dataset, split, probabilities[split]) for split in SPLITS},
        intervals=bootstrap(dataset.labels[test], probabilities["test"], dataset.components[test], dataset.classes),
        operating_points=operating_points.choose(demands, dataset.classes, dataset.labels[val], probabilities["val"]),
        leak_free=_leak_free(dataset, probabilities["test"]),
    )


def _leak_free(dataset: Dataset, probabilities: Probabilities) -> LeakFree | None:
    test, kept = dataset.splits["test"], dataset.division.leak_free_test
    if len(kept) in (0, len(test)):
        return None
    labels, probabilities = dataset.labels[kept], probabilities[np.isin(test, kept)]
    return LeakFree(
        scores=classification.score(labels, probabilities, dataset.classes),
        intervals=bootstrap(labels, probabilities, dataset.components[kept], dataset.classes),
    )
