"""Evaluate an existing model file on labelled images, with the service's own code for decoding and prediction.

Read `evaluate` first: which images there are, on which of them the model is evaluated, what it predicts.
training/report/evaluation.py computes the scores and writes the results.
"""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Int64

from serving.contract.card.model_card import ModelCard
from serving.contract.model import Classifier, open_model
from serving.contract.objects import Location, Url
from training.data import audit, dataset, splits
from training.data.cache import Cache
from training.data.dataset import LabelledImages
from training.data.formats import find
from training.data.inspection.contents import inspect_files
from training.data.inspection.image_set import ImageSet, image_set
from training.data.sources.forgotten import Forgotten
from training.data.sources.source import NAMES_SHOWN, SPLITS, Source, Split, shortened
from training.engine import runs
from training.errors import ConfigError, DataError
from training.metrics import costs
from training.metrics.comparison import unshared
from training.metrics.slices import slices
from training.models.prediction import fitted_batches
from training.options.choices import Data
from training.report.evaluation import Evaluation, ModelPredictions, write_evaluation
from training.report.looks import EarlierLooks, Look, record, runs_folder
from training.storage import kept_unless_empty

Wanted = Literal["train", "val", "test", "all"]
Splits = dict[Split, np.ndarray]


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
    classifiers = [open_model(model_file(path), threads=0) for path in paths]
    _check_classes(classifiers)
    matrix = costs.read(config.costs, classifiers[0].card.classes) if config.costs else None
    cache = Cache(config.cache)
    outputs = [config.out] if config.out else []
    source = find(config.data, cache, outputs, config.corrections, Forgotten.of(model_file(config.run)))
    check_labels(source, classifiers[0].card.classes)
    name = re.sub(r"\W+", "-", _name(config.data)).strip("-").lower()
    default = model_file(config.run).parent / "evaluations" / f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{name}"
    with results_folder(config.out, default) as folder:
        evaluated = _evaluated(config, classifiers, source, cache)
        write_evaluation(replace(evaluated, looks=_look(evaluated), costs=matrix), folder)
    return folder


def _name(data: Location | None) -> str:
    if data is None:
        return "digits"
    return data.name if isinstance(data, Url) else data.resolve().name


def _evaluated(config: EvaluateConfig, classifiers: Sequence[Classifier], source: Source, cache: Cache) -> Evaluation:
    """Read the images, say which they are, and predict. Raises ConfigError, DataError, OSError."""
    images, trained_on = gather(source, cache, [classifier.card for classifier in classifiers])
    split, indices, reason = choose(config.split, images, remade=trained_on[0] is not None)
    sliced = slices(images, config.slices, indices)
    warnings = [
        *images.image_set.notes,
        *_missing_classes(images, indices),
        *learned_from(classifiers, trained_on, indices),
    ]
    for letter, classifier in zip("AB" if config.compare else " ", classifiers, strict=True):
        print(f"model {letter} {_describe(classifier)}")
    print(f"images  {images.name}: {split}, {len(indices):,} of {len(images.keys):,}; {reason}")
    for warning in warnings:
        print(f"warning: {warning}")
    for key, why in list(images.unreadable.items())[:NAMES_SHOWN]:
        print(f"left out {key}: {why}")
    models = [_predicted(classifier, images, indices) for classifier in classifiers]
    return Evaluation(
        images=images,
        split=split,
        reason=reason,
        indices=indices,
        warnings=warnings,
        models=models,
        looks=None,
        slices=sliced,
    )


def _predicted(classifier: Classifier, images: LabelledImages, indices: Int64[np.ndarray, " _"]) -> ModelPredictions:
    """What the service answers for the images `indices`."""
    answers = [classifier.answers(batch) for batch in fitted_batches(classifier.card, images, indices)]
    order = [classifier.card.classes.index(name) for name in images.classes]
    novelty = [each.novelty for each in answers if each.novelty is not None]
    return ModelPredictions(
        classifier=classifier,
        probabilities=np.concatenate([each.probabilities for each in answers])[:, order],
        novelty=np.concatenate(novelty) if novelty else None,
    )


def _look(evaluation: Evaluation) -> EarlierLooks | None:
    """Log the look at the test images, and return those before; None for training and validation images."""
    images, indices = evaluation.images, evaluation.indices
    if evaluation.split in ("train split", "val split"):
        return None
    if len(test := images.splits["test"]) and evaluation.split == "all images":
        indices = test  # the split that the runs are scored on is among them
    files = [model.classifier.path for model in evaluation.models]
    of_run = (files[0].parent / runs.CONFIG).is_file()
    look = Look(
        what="compare" if len(files) > 1 else "evaluate",
        models=tuple(model.classifier.card.name for model in evaluation.models),
        test_split=dataset.digest_of_test(images, indices),
        images=len(indices),
    )
    return record(runs_folder(files[0].resolve().parent.parent) if of_run else Path("runs"), look)


def gather(source: Source, cache: Cache, cards: Sequence[ModelCard]) -> tuple[LabelledImages, list[Splits | None]]:
    """Return all readable images and, for each model, the splits of its training if this is its training data.

    Raises DataError, OSError.
    """
    # The chosen images are read a second time. They are known only after all were read, since duplicates decide the
    # splits, and the pixels of all images need not fit into memory.
    images = image_set(source, inspect_files(source, cache), cards[0].classes)
    audit.check_readable(images)
    divisions = [dataset.training_division(images, card) for card in cards]
    division = divisions[0] or splits.undivided(images)
    digest = dataset.digest(images, division)
    if divisions[0] is None:
        division = replace(division, splits=_splits_of_source(images))
    images = replace(images, depth=cards[0].preprocessing.depth)
    labelled = LabelledImages(image_set=images, division=division, digest=digest)
    return labelled, [division.splits if division else None for division in divisions]


def _splits_of_source(images: ImageSet) -> Splits:
    return {split: np.flatnonzero([name == split for name in images.source_splits]) for split in SPLITS}


def choose(asked: Wanted | None, images: LabelledImages, *, remade: bool) -> tuple[str, Int64[np.ndarray, " _"], str]:
    """The images to evaluate on: their name, their indices and the reason, in words.

    `remade`: the splits are those of the model's training. Raises ConfigError for a split that does not exist.
    """
    wanted: Wanted = asked or ("test" if len(images.splits["test"]) else "all")
    if wanted == "all":
        reason = "as asked" if asked else "the data is not what the model was trained on and brings no test split"
        return "all images", np.arange(len(images.keys)), reason
    if not len(images.splits[wanted]):
        raise ConfigError(
            f"--split {wanted}: {images.name} brings no such split and is not what the model was trained on; "
            "expected all"
        )
    reason = "the model was trained on this data, whose splits were made again" if remade else "the data brings it"
    return f"{wanted} split", images.splits[wanted], reason


def model_file(path: Path) -> Path:
    """The model file of a run's folder; another path as it is."""
    return path / "model.onnx" if path.is_dir() else path


def _check_classes(classifiers: Sequence[Classifier]) -> None:
    ours, theirs = (classifier.card.classes for classifier in (classifiers[0], classifiers[-1]))
    if set(ours) != set(theirs):
        only_ours, only_theirs = unshared(ours, theirs)
        raise ConfigError(
            f"--compare: expected a model of the same classes; only in --run: {only_ours}, only there: {only_theirs}"
        )


def check_labels(source: Source, classes: Sequence[str]) -> None:
    """Raise DataError, with names and counts, for labels that the model does not know."""
    names, counts = np.unique(source.labels, return_counts=True)
    unknown = [f"{name} ({count:,})" for name, count in zip(names, counts, strict=True) if name not in classes]
    if unknown:
        raise DataError(
            f"{source.name}: classes that the model does not know, with their images: "
            f"{shortened(unknown)}; it knows {shortened(classes)}"
        )


@contextmanager
def results_folder(out: Path | None, default: Path) -> Iterator[Path]:
    """Make the folder of the results before any image is read: one that cannot be written to then costs no time.

    It is removed again where nothing came into it, so that the next attempt can use the name. Raises ConfigError for an
    `out` that exists, OSError.
    """
    folder = out or default
    try:
        folder.mkdir(parents=True)
    except FileExistsError as error:
        raise ConfigError(f"--out {folder}: expected a folder that does not exist yet") from error
    except OSError as error:
        raise OSError(f"{folder}: cannot be made ({error.strerror}); --out names another place") from error
    with kept_unless_empty(folder):
        yield folder


def _missing_classes(images: LabelledImages, indices: np.ndarray) -> list[str]:
    present = images.labels[indices]
    absent = [name for label, name in enumerate(images.classes) if label not in present]
    return (
        [f"no image of {shortened(absent)}: no scores of these classes, and averages are over the others"]
        if absent
        else []
    )


def learned_from(
    classifiers: Sequence[Classifier], trained_on: Sequence[Splits | None], indices: Int64[np.ndarray, " _"]
) -> list[str]:
    """A warning for each model trained or validated on some of these images; another seed makes other splits.

    The final model of folds is trained on all of them. `trained_on` are the splits of each model's training.
    """
    sentences = []
    for classifier, made in zip(classifiers, trained_on, strict=True):
        count = np.isin(indices, np.r_[made["train"], made["val"]]).sum() if made else 0
        if count:
            sentences.append(
                f"{classifier.path} was trained, chosen or calibrated on {count:,} of these {len(indices):,} images: "
                "its scores here do not apply to new images"
            )
    return sentences


def _describe(classifier: Classifier) -> str:
    card = classifier.card
    size = f"{card.preprocessing.height} x {card.preprocessing.width} x {card.preprocessing.channels}"
    return f"{classifier.path}: {card.name}, version {card.version}, {size}, {classifier.provider}"
