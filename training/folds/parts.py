"""The parts of the data: each is the test split of one training, and the name of its run."""

import re
from dataclasses import dataclass, replace

import numpy as np

from training.data import left_out, splits
from training.data.inspection.image_set import ImageSet
from training.data.left_out import LeftOut
from training.data.splits import SplitPolicy, components
from training.errors import DataError
from training.folds.config import FoldsConfig

FOLDS = 5


@dataclass(frozen=True, kw_only=True)
class FoldPart:
    """One part of the data."""

    name: str
    """Name of its run's folder."""
    fold: str
    """Its --fold."""
    value: str | None = None
    """That is left out; None without --leave-out."""


def parts(config: FoldsConfig, images: ImageSet) -> list[FoldPart]:
    """The parts that the options make of the images. Raises ConfigError and DataError, before any training."""
    if config.leave_out is None:
        count = config.folds or FOLDS
        return [FoldPart(name=f"{i}-of-{count}", fold=f"{i}/{count}") for i in range(1, count + 1)]
    values = left_out.values(images, config.leave_out)
    column = left_out.name_of(config.leave_out)
    folds = [
        FoldPart(name=f"{number}-{in_file_name(value)}", fold=str(LeftOut(column, value)), value=value)
        for number, value in enumerate(sorted(set(values)), 1)
    ]
    for part in folds:
        try:
            splits.divide(images, SplitPolicy.of(replace(config.training, fold=part.fold)))
        except DataError as error:
            raise DataError(f"{part.fold} left out: {error}") from error
    return folds


def in_file_name(text: str) -> str:
    """The text as a part of a folder's name."""
    return re.sub(r"[^\w.-]+", "_", text)[:60]


def parted(config: FoldsConfig, images: ImageSet) -> str | None:
    """What becomes of groups and pictures that have several values of --leave-out, in a sentence; None without any.

    Raises DataError where --leaks forbids them.
    """
    if config.leave_out is None:
        return None
    component = components(images.groups, images.duplicates.links)
    numbers = left_out.spanning(left_out.values(images, config.leave_out), component)
    if not len(numbers):
        return None
    members = np.isin(component, numbers)
    shown = ", ".join(images.keys[i] for i in np.flatnonzero(members)[:3])
    finding = (
        f"{len(numbers):,} groups or pictures, {members.sum():,} images such as {shown}, have several values of "
        f"{left_out.name_of(config.leave_out)}"
    )
    if config.leaks == "error":
        raise DataError(f"{images.name}: {finding}; --leaks drop takes them out of training")
    if config.leaks == "warn":
        return f"{finding}: a model may be tested on what it has learned (--leaks warn)"
    return f"{finding}: each is left out of the trainings that are tested on another image of it (--leaks drop)"
