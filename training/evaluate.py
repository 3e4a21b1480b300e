"""Evaluate an existing model file on labelled images, with the service's own code for decoding and prediction.

Read `evaluate` first: which images there are, on which of them the model is evaluated, what it predicts.
training/report/evaluation.py computes the scores and writes the results.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from jaxtyping import Int64

from serving.contract.model import Answers, Classifier, open_model
from serving.contract.objects import Location, Url
from training.data import dataset
from training.data.dataset import LabelledImages
from training.data.selection import Selection, Wanted, select
from training.data.sources.source import NAMES_SHOWN, shortened
from training.engine import runs
from training.errors import ConfigError
from training.metrics import costs
from training.metrics.comparison import unshared
from training.metrics.slices import check_columns, slices
from training.models.prediction import fitted_batches
from training.options.choices import Data
from training.report.evaluation import EvaluationReport, ModelPredictions, write_evaluation
from training.report.looks import EarlierLooks, Look, record_look, runs_folder


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """Evaluate an existing model on labelled images, with exactly the predictions of the service.

    With --compare, evaluate a second model on the same images, and decide which is better, if the images suffice.
    """

    run: Path
    """The model: a run's folder, or an .onnx file."""
    data: Data | None = None
    """Images with labels, in one of the formats of training. None: the digits."""
    corrections: Path | None = None
    """As for training, whose data is not the same without them."""
    split: Wanted | None = None
    """Images to evaluate on. None: the test split, if the data brings one or is what the model was trained on (its
    splits are then made again); else all."""
    costs: Path | None = None
    """As for training. None: the costs of the model, if it has any."""
    slices: str | None = None
    """As for training: columns of a CSV manifest by whose values scores are compared."""
    compare: Path | None = None
    """A second model, as in --run, to compare on the same images; it must have the same classes."""
    cache: Path | None = None
    """Folder that keeps what is read from the images for the next time, such as runs/.cache, the one of training.
    None: nothing is kept."""
    out: Path | None = None
    """Folder for the results, which must not exist yet. None: evaluations/<date, time, data> beside the model."""


def evaluate(config: EvaluateConfig) -> Path:
    """Evaluate one model or compare two, and return the folder with the results.

    Raises ModelRefused, ConfigError, DataError, OSError.
    """
    paths = [path for path in (config.run, config.compare) if path is not None]
    classifiers = [open_model(runs.model_file(path), threads=0) for path in paths]
    _check_classes(classifiers)
    matrix = costs.read(config.costs, classifiers[0].card.classes) if config.costs else None
    name = re.sub(r"\W+", "-", _name(config.data)).strip("-").lower()
    default = classifiers[0].path.parent / "evaluations" / f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{name}"
    with runs.results_folder(config.out, default) as folder:
        selection = select(
            config,
            [classifier.card for classifier in classifiers],
            classifiers[0].path,
            folder,
            lambda source: check_columns(config.slices, source),
        )
        evaluated = _evaluated(config, classifiers, selection)
        write_evaluation(replace(evaluated, looks=_look(evaluated), costs=matrix), folder)
    return folder


def _name(data: Location | None) -> str:
    if data is None:
        return "digits"
    return data.name if isinstance(data, Url) else data.resolve().name


def _evaluated(config: EvaluateConfig, classifiers: Sequence[Classifier], selection: Selection) -> EvaluationReport:
    """Say which images they are, and predict. Raises ConfigError, DataError, OSError."""
    images, indices = selection.images, selection.indices
    sliced = slices(images, config.slices, indices)
    warnings = [
        *images.image_set.notes,
        *_missing_classes(images, indices),
        *selection.learned_from([classifier.path for classifier in classifiers]),
    ]
    for letter, classifier in zip("AB" if config.compare else " ", classifiers, strict=True):
        print(f"model {letter} {_describe(classifier)}")
    print(selection.line)
    for warning in warnings:
        print(f"warning: {warning}")
    for key, why in list(images.unreadable.items())[:NAMES_SHOWN]:
        print(f"left out {key}: {why}")
    models = [_predicted(classifier, images, indices) for classifier in classifiers]
    return EvaluationReport(
        selection=selection,
        warnings=warnings,
        models=models,
        looks=None,
        slices=sliced,
    )


def _predicted(classifier: Classifier, images: LabelledImages, indices: Int64[np.ndarray, " _"]) -> ModelPredictions:
    """What the service answers for the images `indices`."""
    shown = fitted_batches(classifier.card, images, indices)
    answers = Answers.concatenate([classifier.answers(batch) for batch in shown])
    order = [classifier.card.classes.index(name) for name in images.classes]
    return ModelPredictions(
        classifier=classifier, probabilities=answers.probabilities[:, order], novelty=answers.novelty
    )


def _look(evaluation: EvaluationReport) -> EarlierLooks | None:
    """Log the look at the test images, and return those before; None for training and validation images."""
    images, indices, split = evaluation.selection.images, evaluation.selection.indices, evaluation.selection.split
    if split in ("train split", "val split"):
        return None
    if len(test := images.splits["test"]) and split == "all images":
        indices = test  # the split that the runs are scored on is among them
    files = [model.classifier.path for model in evaluation.models]
    of_run = (files[0].parent / runs.CONFIG).is_file()
    look = Look(
        what="compare" if len(files) > 1 else "evaluate",
        models=tuple(model.classifier.card.name for model in evaluation.models),
        test_split=dataset.digest_of_test(images, indices),
        images=len(indices),
    )
    return record_look(runs_folder(files[0].resolve().parent.parent) if of_run else Path("runs"), look)


def _check_classes(classifiers: Sequence[Classifier]) -> None:
    ours, theirs = (classifier.card.classes for classifier in (classifiers[0], classifiers[-1]))
    if set(ours) != set(theirs):
        only_ours, only_theirs = unshared(ours, theirs)
        raise ConfigError(
            f"--compare: expected a model of the same classes; only in --run: {only_ours}, only there: {only_theirs}"
        )


def _missing_classes(images: LabelledImages, indices: np.ndarray) -> list[str]:
    present = images.labels[indices]
    absent = [name for label, name in enumerate(images.classes) if label not in present]
    return (
        [f"no image of {shortened(absent)}: no scores of these classes, and averages are over the others"]
        if absent
        else []
    )


def _describe(classifier: Classifier) -> str:
    card = classifier.card
    size = f"{card.preprocessing.height} x {card.preprocessing.width} x {card.preprocessing.channels}"
    return f"{classifier.path}: {card.name}, version {card.version}, {size}, {classifier.provider}"
