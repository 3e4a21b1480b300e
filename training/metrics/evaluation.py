"""What a model predicts on a split of the data, and how good that is."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, Int64
from scipy.special import softmax
from torch import nn

from serving.contract.card.decisions import Calibration, Familiarity, OperatingPoint
from serving.contract.decode import Preprocessing
from serving.contract.model import Answers
from serving.contract.neighbours.index import TrainingIndex
from training.data import class_balance
from training.data.dataset import Dataset
from training.data.sources.source import SPLITS, Split
from training.distributed import ALONE, Group
from training.errors import NonFiniteLoss
from training.metrics import calibration, classification, operating_points
from training.metrics.calibration import Logits
from training.metrics.classification import Probabilities, ScoredImages, Scores
from training.metrics.familiarity import novelty
from training.metrics.familiarity.novelty import Detector, Novelty
from training.metrics.familiarity.training_index import training_index
from training.metrics.intervals.bootstrap import Intervals, bootstrap
from training.models import networks, prediction
from training.models.normalization import Calibrate
from training.models.prediction import Features, Images
from training.options.settled import SettledConfig
from training.storage import copy_rows

TRAINING_IMAGES_SCORED = 5_000
"""For the gap between training and validation, this many training images are scored without augmentation."""
BLANK_IMAGES = 64
"""Number of images of each kind that shows nothing. By them the report says whether novelty works at all."""


def compute_logits(
    model: nn.Module, dataset: Dataset, split: Split, group: Group = ALONE
) -> Float32[np.ndarray, "images classes"]:
    """Logits of the images `scored_indices`.

    Each process of a group predicts a part, and every process returns the whole. Raises NonFiniteLoss.
    """
    indices = scored_indices(dataset, split)
    shard = group.shard(len(indices))
    return _finite(group.gather(prediction.outputs(model, dataset.images, indices[shard.start : shard.stop])), split)


def scored_indices(dataset: Dataset, split: Split) -> Int64[np.ndarray, " _"]:
    """The images of a split that are scored; of the training split 5,000 at most, spread evenly over it."""
    indices = dataset.splits[split]
    if split != "train" or len(indices) <= TRAINING_IMAGES_SCORED:
        return indices
    spread: np.ndarray = indices[np.linspace(0, len(indices) - 1, TRAINING_IMAGES_SCORED).astype(int)]
    return spread


def _finite(logits: Float32[np.ndarray, "images classes"], split: Split) -> Float32[np.ndarray, "images classes"]:
    if not np.isfinite(logits).all():
        raise NonFiniteLoss(f"the model gives values that are not finite on the {split} split")
    return logits


def score(dataset: Dataset, split: Split, probabilities: Probabilities) -> Scores:
    """Scores of these probabilities of a split's `scored_indices`."""
    labels = dataset.labels[scored_indices(dataset, split)]
    return classification.score(labels, probabilities, dataset.classes)


def validate(model: nn.Module, dataset: Dataset, config: SettledConfig, group: Group = ALONE) -> tuple[Scores, Scores]:
    """Scores of the validation split, and those by which --best-by log_loss ranks: at the temperature fitted to it.

    The temperature is fitted after the training, so that an epoch of too certain answers is no worse for that. Raises
    NonFiniteLoss.
    """
    logits = compute_logits(model, dataset, "val", group)
    scores = score(dataset, "val", softmax(logits, axis=1))
    if config.best_by != "log_loss":
        return scores, scores
    labels = dataset.labels[dataset.splits["val"]]
    fitted = calibration.fit(labels, logits, config.confidence_level, "none", np.ones(logits.shape[1]))
    return scores, score(dataset, "val", calibrated_probabilities(logits, fitted))


@dataclass(frozen=True, kw_only=True)
class LeakFree:
    """Scores on the test images whose picture and group are in no other split."""

    scores: Scores
    intervals: Intervals


@dataclass(frozen=True, kw_only=True)
class NoveltyEvaluation:
    """How the model finds images that are unlike those of its training."""

    detector: Detector
    familiarity: Familiarity
    validation: Novelty
    test: Novelty
    blank: dict[str, Novelty]
    """Novelty of images that show nothing, by their kind."""
    index: TrainingIndex


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """The calibrated model on every split; `uncalibrated` are its scores on the test split before calibration."""

    uncalibrated: Scores
    calibration: Calibration
    probabilities: dict[Split, Probabilities]
    scores: dict[Split, Scores]
    intervals: Intervals
    operating_points: tuple[OperatingPoint, ...]
    """Points of --operate whose demand the validation split reaches."""
    leak_free: LeakFree | None
    """None where no test image leaks, and where each of them does."""
    plain: Float32[np.ndarray, "tested classes"] | None = None
    """Answers of the same weights to the test images as they are, with a calibration of their own; None without
    --views."""
    by_final_model: Probabilities | None = None
    """What the model itself answers to the test images, where `probabilities` has the answers of the folds' models."""
    novelty: NoveltyEvaluation | None = None
    """None without --unfamiliar, where the validation split is too small for it, and for the final model of folds."""

    @property
    def validation(self) -> Answers:
        """Answers to the validation images."""
        return Answers(self.probabilities["val"], self.novelty.validation if self.novelty else None)


def evaluate_best(
    model: nn.Sequential, dataset: Dataset, config: SettledConfig, plain: Probabilities | None = None
) -> Evaluation:
    """Calibrate `model`, which gets one more layer for it, and score it.

    `dataset` has images, or the features of a frozen body. `plain` is what `evaluate_plain` has returned. Raises
    NonFiniteLoss.
    """
    body, head = networks.features_and_head(model)
    embeddings = {split: _embeddings(body, dataset, split) for split in SPLITS}
    logits = {split: _finite(prediction.outputs(head, embeddings[split]), split) for split in SPLITS}
    val, test = dataset.splits["val"], dataset.splits["test"]
    novelty_evaluation = _evaluate_novelty(body, embeddings, dataset, config.unfamiliar) if config.unfamiliar else None
    calibrated = calibrate(dataset, logits["val"], config, novelty_evaluation)
    if calibrated.threshold is None:
        count, groups = len(val), len(np.unique(dataset.components[val]))
        images = f"{count} validation images" + (f" of {groups} groups" if groups < count else "")
        print(f"warning: {images} are too few for prediction sets at {calibrated.level:.0%}")
    targets = operating_points.parse_all(config.operate)
    device = next(model.parameters()).device
    model.append(Calibrate(calibrated).to(device))
    probabilities = {split: calibrated_probabilities(logits[split], calibrated) for split in SPLITS}
    return Evaluation(
        uncalibrated=score(dataset, "test", softmax(logits["test"], axis=1)),
        calibration=calibrated,
        probabilities=probabilities,
        scores={split: score(dataset, split, probabilities[split]) for split in SPLITS},
        intervals=bootstrap(dataset.labels[test], probabilities["test"], dataset.components[test], dataset.classes),
        operating_points=operating_points.choose(targets, dataset.classes, dataset.labels[val], probabilities["val"]),
        leak_free=_leak_free(dataset, probabilities["test"]),
        plain=plain,
        novelty=novelty_evaluation,
    )


def evaluate_plain(model: nn.Sequential, dataset: Dataset, config: SettledConfig) -> Probabilities:
    """What a model without views answers to the test images, calibrated like `evaluate_best`. Raises NonFiniteLoss."""
    learner = networks.features_and_head(model)[1] if dataset.images.ndim == 2 else model
    fitted = calibrate(dataset, compute_logits(learner, dataset, "val"), config)
    return calibrated_probabilities(compute_logits(learner, dataset, "test"), fitted)


def calibrate(
    dataset: Dataset, logits: Logits, config: SettledConfig, novelty_evaluation: NoveltyEvaluation | None = None
) -> Calibration:
    """Fit bias, temperature, priors and prediction sets to the logits of the validation split.

    The sets to its familiar images alone, as only their like have one.
    """
    val = dataset.splits["val"]
    labels, components = dataset.labels[val], dataset.components[val]
    frequencies = class_balance.frequencies(dataset.labels[dataset.splits["train"]], len(dataset.classes))
    fitted = calibration.fit(labels, logits, config.confidence_level, config.balance, frequencies)
    if len(labels) < calibration.MIN_IMAGES:
        return fitted
    probabilities = calibrated_probabilities(logits, fitted)
    scored = ScoredImages(labels=labels, probabilities=probabilities, components=components)
    if novelty_evaluation is not None:
        scored = scored.chosen(~novelty_evaluation.familiarity.unfamiliar(novelty_evaluation.validation))
    return calibration.with_thresholds(fitted, scored, by_class=config.sets == "class")


def calibrated_probabilities(logits: Logits, fitted: Calibration) -> Probabilities:
    """Probabilities `[images, classes]` of a model's logits after its calibration."""
    answers: Probabilities = softmax(calibration.corrected(logits, fitted), axis=1)
    return answers


def _embeddings(body: nn.Module, dataset: Dataset, split: Split) -> Features:
    indices = scored_indices(dataset, split)
    if dataset.images.ndim == 2:
        features: Features = copy_rows(dataset.images, indices)
        return features
    return prediction.outputs(body, dataset.images, indices)


def _evaluate_novelty(
    body: nn.Module, embeddings: dict[Split, Features], dataset: Dataset, false_alarms: float
) -> NoveltyEvaluation | None:
    labels, components = dataset.labels[scored_indices(dataset, "train")], dataset.components[dataset.splits["val"]]
    detector = novelty.fit(embeddings["train"], labels)
    validation = detector.novelty(embeddings["val"])
    differ = novelty.spread(embeddings["train"], labels) >= novelty.LEAST_SPREAD
    familiarity = novelty.choose(validation, components, false_alarms) if differ else None
    if familiarity is None:
        print(f"warning: {novelty.why_none(components, false_alarms)}")
        return None
    return NoveltyEvaluation(
        detector=detector,
        familiarity=familiarity,
        validation=validation,
        test=detector.novelty(embeddings["test"]),
        blank={
            name: detector.novelty(prediction.outputs(body, images))
            for name, images in _blank_images(dataset.preprocessing)
        },
        index=training_index(body, dataset, detector, embeddings["train"]),
    )


def _blank_images(preprocessing: Preprocessing) -> Iterator[tuple[str, Images]]:
    """Images that show nothing, by their kind."""
    rng = np.random.default_rng(0)
    shape = (BLANK_IMAGES, preprocessing.height, preprocessing.width, preprocessing.channels)
    yield "noise", rng.integers(0, 256, shape, dtype=np.uint8)
    colours = rng.integers(0, 256, (BLANK_IMAGES, 1, 1, preprocessing.channels), dtype=np.uint8)
    yield "one colour", np.ascontiguousarray(np.broadcast_to(colours, shape))


def _leak_free(dataset: Dataset, probabilities: Probabilities) -> LeakFree | None:
    test, kept = dataset.splits["test"], dataset.division.leak_free_test
    if len(kept) in (0, len(test)):
        return None
    labels, probabilities = dataset.labels[kept], probabilities[np.isin(test, kept)]
    return LeakFree(
        scores=classification.score(labels, probabilities, dataset.classes),
        intervals=bootstrap(labels, probabilities, dataset.components[kept], dataset.classes),
    )
