"""The labelled images that existing models are to predict, and whether these have learned from them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int64

from serving.contract.card.model_card import ModelCard
from training.data import audit, dataset, splits
from training.data.cache import Cache
from training.data.dataset import LabelledImages
from training.data.formats import find_source
from training.data.inspection.contents import inspect_files
from training.data.inspection.image_set import ImageSet, image_set
from training.data.sources.forgotten import Forgotten
from training.data.sources.source import SPLITS, Source, Split, shortened
from training.errors import ConfigError, DataError
from training.options.choices import Data

Wanted = Literal["train", "val", "test", "all"]
Splits = dict[Split, Int64[np.ndarray, " _"]]


@runtime_checkable
class SelectOptions(Protocol):
    """The options of a command that say which images it takes."""

    @property
    def data(self) -> Data | None:
        """Where the images are; None: the digits."""

    @property
    def corrections(self) -> Path | None:
        """Corrected labels."""

    @property
    def split(self) -> Wanted | None:
        """None: the test split where there is one, else all."""

    @property
    def cache(self) -> Path | None:
        """Folder of the cache."""


@dataclass(frozen=True, kw_only=True)
class Selection:
    """The images `indices` of a source, chosen to be predicted by existing models."""

    source: Source
    images: LabelledImages
    split: str
    """What they are, such as `test split`."""
    indices: Int64[np.ndarray, " selected"]
    reason: str
    """Why these were chosen, in words."""
    trained_on: Sequence[Splits | None]
    """For each model, the splits of its training; None if it was trained on other data."""

    @property
    def line(self) -> str:
        """What a command prints of it."""
        images = self.images
        return f"images  {images.name}: {self.split}, {len(self.indices):,} of {len(images.keys):,}; {self.reason}"

    def learned_from(self, models: Sequence[Path]) -> list[str]:
        """A warning for each model trained or validated on some of these images; another seed makes other splits.

        The final model of folds is trained on all of them.
        """
        sentences = []
        for model, divided in zip(models, self.trained_on, strict=True):
            count = np.isin(self.indices, np.r_[divided["train"], divided["val"]]).sum() if divided else 0
            if count:
                sentences.append(
                    f"{model} was trained, chosen or calibrated on {count:,} of these {len(self.indices):,} images: "
                    "its scores here do not apply to new images"
                )
        return sentences


def select(
    options: SelectOptions,
    cards: Sequence[ModelCard],
    model: Path,
    folder: Path,
    check: Callable[[Source], None] = lambda source: None,
) -> Selection:
    """Read the images, and choose those for models with these `cards`; the first is the one of the file `model`.

    `folder` is that of the results, which holds no images. `check` may refuse the source before its images are read.
    Raises ConfigError, DataError, OSError.
    """
    cache = Cache(options.cache)
    source = find_source(options.data, cache, [folder], options.corrections, Forgotten.of(model))
    check_labels(source, cards[0].classes)
    check(source)
    images, trained_on = gather_images(source, cache, cards)
    split, indices, reason = choose(options.split, images, remade=trained_on[0] is not None)
    return Selection(source=source, images=images, split=split, indices=indices, reason=reason, trained_on=trained_on)


def check_labels(source: Source, classes: Sequence[str]) -> None:
    """Raise DataError, with names and counts, for labels that the model does not know."""
    names, counts = np.unique(source.labels, return_counts=True)
    unknown = [f"{name} ({count:,})" for name, count in zip(names, counts, strict=True) if name not in classes]
    if unknown:
        raise DataError(
            f"{source.name}: classes that the model does not know, with their images: "
            f"{shortened(unknown)}; it knows {shortened(classes)}"
        )


def gather_images(
    source: Source, cache: Cache, cards: Sequence[ModelCard]
) -> tuple[LabelledImages, list[Splits | None]]:
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


def choose(
    requested: Wanted | None, images: LabelledImages, *, remade: bool
) -> tuple[str, Int64[np.ndarray, " _"], str]:
    """The images to evaluate on: their name, their indices and the reason, in words.

    `remade`: the splits are those of the model's training. Raises ConfigError for a split that does not exist.
    """
    wanted: Wanted = requested or ("test" if len(images.splits["test"]) else "all")
    if wanted == "all":
        reason = "as asked" if requested else "the data is not what the model was trained on and brings no test split"
        return "all images", np.arange(len(images.keys)), reason
    if not len(images.splits[wanted]):
        raise ConfigError(
            f"--split {wanted}: {images.name} brings no such split and is not what the model was trained on; "
            "expected all"
        )
    reason = "the model was trained on this data, whose splits were made again" if remade else "the data brings it"
    return f"{wanted} split", images.splits[wanted], reason
