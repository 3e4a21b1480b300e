"""The final model of folds: trained on all images, and scored and calibrated by the folds' answers.

No image is left that it has not learned from. So its scores are those of the folds' models, each on the images that it
has not seen; temperature, bias, prediction sets and operating points are fitted to the same answers, as if this model
gave them. It has learned from more images than each of them.
"""

import json
from dataclasses import replace
from pathlib import Path
from statistics import median

import numpy as np
import yaml
from jaxtyping import Float32
from scipy.special import softmax
from torch import nn

from serving.contract.card.decisions import Calibration
from serving.contract.files.names import MODEL
from serving.contract.model import open_model
from training.data.dataset import Dataset
from training.data.sources.source import SPLITS, Split
from training.engine import history, runs
from training.engine.runs import CONFIG
from training.errors import ConfigError, DataError
from training.export.candidate import refusals
from training.folds.config import CHANGE_NO_FOLD, FITTED
from training.folds.results import OutOfFold, check_images, collect_answers, labels_then
from training.metrics import evaluation, operating_points
from training.metrics.classification import Probabilities
from training.metrics.evaluation import Evaluation, calibrated_probabilities, compute_logits
from training.metrics.intervals.bootstrap import bootstrap
from training.models.normalization import Calibrate
from training.models.prediction import predict_images
from training.options.config import TrainConfig
from training.options.settled import SettledConfig

MAY_DIFFER = CHANGE_NO_FOLD | FITTED | {"data", "corrections", "name", "batch_size", "fold", "from_folds"}
MAY_DIFFER |= {"best_epoch", "patience", "quantize", "int8_agreement", "slices"}
"""Options on which the folds' answers do not depend, or that follow from the number of images."""
SMALLEST = float(np.finfo(np.float32).tiny)


def runs_of(folder: Path) -> list[Path]:
    """The finished runs of folds. Raises ConfigError."""
    try:
        facts = json.loads((folder / "folds.json").read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"--from-folds {folder}: expected the folder of finished folds, with folds.json") from error
    run_folders = [folder / each["run"] for each in facts["folds"]]
    if missing := [run for run in run_folders if not runs.is_finished(run)]:
        raise ConfigError(
            f"--from-folds {folder}: {missing[0]} is missing; the command that made the folds makes it again"
        )
    return run_folders


def with_best_epoch(config: TrainConfig) -> TrainConfig:
    """The options with the median of the folds' best epochs, unless another is given. Raises ConfigError."""
    if config.from_folds is None or config.best_epoch is not None:
        return config
    records = [history.read(run) for run in runs_of(config.from_folds)]
    best = [max(line.epoch for line in record.epochs if line.best) for record in records if record]
    chosen = round(median(best))
    print(f"auto   --best-epoch {chosen} (the folds' best ones are {', '.join(map(str, best))})")
    return replace(config, best_epoch=chosen)


def check(config: SettledConfig, dataset: Dataset) -> None:
    """Raise ConfigError where the folds have other options, DataError where they answer other images."""
    if config.from_folds is None:
        return
    for run in runs_of(config.from_folds):
        theirs = yaml.safe_load((run / CONFIG).read_text(encoding="utf-8"))
        options = yaml.safe_load(_with_their_pipeline(config, run, theirs["augment"]).to_yaml())
        if differing := [name for name in options if name not in MAY_DIFFER and options[name] != theirs.get(name)]:
            changes = "; ".join(f"{name} was {theirs.get(name)}, here it is {options[name]}" for name in differing)
            raise ConfigError(f"--from-folds {run}: its model is of other options: {changes}")
    _answers(config.from_folds, dataset)


def _with_their_pipeline(config: SettledConfig, run: Path, theirs: str) -> SettledConfig:
    """The options with a fold's own copy of the file of --augment, where that given has its content."""
    kept = run / Path(theirs).name  # beside its config.yaml, wherever the folds are now
    if not isinstance(config.augment, Path) or not kept.is_file() or not runs.same_bytes(config.augment, kept):
        return config
    return replace(config, augment=Path(theirs))


def statement(config: TrainConfig) -> str | None:
    """What a card and a report say of the scores; None where they are of the file's own model."""
    if config.from_folds is None:
        return None
    count = len(runs_of(config.from_folds))
    return (
        f"Scores: from {count} folds. They, the calibration and all thresholds are from the answers of {count} other "
        "models, each to the images that it has not seen; this file's model has learned from all images and was itself "
        "tested on none."
    )


def evaluate_out_of_fold(
    model: nn.Sequential, learner: nn.Module, dataset: Dataset, config: SettledConfig
) -> Evaluation:
    """Calibrate `model`, which gets one more layer for it, by the folds' answers, and score these.

    As `evaluate_best` otherwise, but without a limit of novelty, for which no image is left. The answers of the test
    split are those of the folds' files as they were evaluated, those of the validation split the same ones after this
    model's calibration. Raises NonFiniteLoss, DataError, ExportRefused.
    """
    assert config.from_folds is not None
    everything, labels = dataset.splits["test"], dataset.labels[dataset.splits["test"]]
    answered, logits = _fold_answers(_answers(config.from_folds, dataset), dataset)
    fitted = evaluation.calibrate(dataset, logits, config)  # each image is in all three splits
    recalibrated = calibrated_probabilities(logits, fitted)
    by_final_model = calibrated_probabilities(compute_logits(learner, dataset, "test"), fitted)
    model.append(Calibrate(fitted).to(next(model.parameters()).device))
    targets = operating_points.parse_all(config.operate)
    scored = np.searchsorted(everything, evaluation.scored_indices(dataset, "train"))
    answers: dict[Split, Probabilities] = {"train": by_final_model[scored], "val": recalibrated, "test": answered}
    return Evaluation(
        uncalibrated=evaluation.score(dataset, "test", softmax(logits, axis=1)),
        calibration=fitted,
        probabilities=answers,
        scores={split: evaluation.score(dataset, split, answers[split]) for split in SPLITS},
        intervals=bootstrap(labels, answered, dataset.components[everything], dataset.classes),
        operating_points=operating_points.choose(targets, dataset.classes, labels, recalibrated),
        leak_free=None,
        by_final_model=by_final_model,
    )


def _answers(folder: Path, dataset: Dataset) -> OutOfFold:
    """The folds' answers to all images. Raises DataError where they are to others."""
    folds = runs_of(folder)
    answers = collect_answers(folds, dataset)
    if not np.array_equal(answers.indices, dataset.splits["test"]):
        raise DataError(f"{folder}: its folds answer other images than the data has now; the folds are to be made anew")
    check_images(folds, replace(dataset.image_set, labels=labels_then(folds, dataset)))
    return answers


def _fold_answers(answers: OutOfFold, dataset: Dataset) -> tuple[Probabilities, Float32[np.ndarray, "images classes"]]:
    """What each fold's file answers to its own test images, and the logits behind it. Raises ExportRefused."""
    probabilities = np.zeros((len(answers.indices), len(dataset.classes)), np.float32)
    logits = probabilities.copy()
    for number, run in enumerate(answers.runs):
        rows = answers.fold == number
        with refusals():
            classifier = open_model(run / MODEL, threads=0)
            probabilities[rows] = predict_images(classifier, dataset, answers.indices[rows])
        logits[rows] = logits_of(probabilities[rows], classifier.card.calibration)
    return probabilities, logits


def logits_of(probabilities: Probabilities, fitted: Calibration) -> Float32[np.ndarray, "images classes"]:
    """The logits, up to a constant of each image, that a calibration has turned into these probabilities."""
    scaled = np.log(np.maximum(probabilities, SMALLEST)) * np.float32(fitted.temperature)
    logits: np.ndarray = scaled - np.array(fitted.bias, np.float32) if fitted.bias else scaled
    return logits
