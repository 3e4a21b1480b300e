"""Parts of the data by the values of a manifest's column, each left out of one training: `--fold COLUMN=VALUE`."""

from difflib import get_close_matches
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int64

from serving.contract.listing import clean
from training.data.inspection.image_set import ImageSet
from training.data.sources.source import Source, refuse, shortened
from training.errors import ConfigError


class LeftOut(NamedTuple):
    """The images that no training sees: those with this value of this column."""

    column: str
    value: str

    @classmethod
    def of(cls, fold: str) -> "LeftOut | None":
        """What `--fold COLUMN=VALUE` leaves out; None for another form of --fold."""
        column, equals, value = fold.partition("=")
        return cls(name_of(column), clean(value)) if equals else None

    def __str__(self) -> str:
        """As --fold takes it."""
        return f"{self.column}={self.value}"


def name_of(column: str) -> str:
    """The column as a manifest names it."""
    return clean(column).lower()


def values(images: ImageSet, column: str) -> list[str]:
    """The value of each image. Raises ConfigError for a column that is not there or divides nothing.

    Raises DataError where an image has no value: it would be left out of no training, and tested by none.
    """
    name, cells = name_of(column), column_of(images, column)
    without = (key for key, value in zip(images.keys, cells, strict=True) if not value)
    refuse(images.name, f"images without a value of {name}", without)
    if len(set(cells)) < 2:
        raise ConfigError(f"column {column}: expected 2 values or more, got {cells[0]} for all images")
    return cells


def column_of(images: ImageSet | Source, column: str, option: str = "column") -> list[str]:
    """What the column says of each image. Raises ConfigError where the data does not have it."""
    name = name_of(column)
    if name not in images.columns:
        near = get_close_matches(name, images.columns, cutoff=0)
        there = f"there are {shortened(near)}" if near else "it has none beside path, label, split and group"
        raise ConfigError(f"{option} {column}: {images.name} has no such column; {there}")
    return images.columns[name]


def check_value(images: ImageSet | Source, which: LeftOut) -> None:
    """Raise ConfigError where the data does not have the column, or no image has the value."""
    known = set(column_of(images, which.column))
    if which.value not in known:
        near = shortened(get_close_matches(which.value, known, cutoff=0))
        raise ConfigError(f"--fold {which}: no image has this value; there are {near}")


def left_out(images: ImageSet, which: LeftOut) -> Bool[np.ndarray, " images"]:
    """Which images have the value. Raises ConfigError, DataError."""
    mask: np.ndarray = np.array(values(images, which.column)) == which.value
    check_value(images, which)
    return mask


def spanning(column_values: list[str], components: Int64[np.ndarray, " images"]) -> Int64[np.ndarray, " _"]:
    """The components, groups or copies of a picture, whose images have two values or more."""
    pairs = {(component, value) for component, value in zip(components.tolist(), column_values, strict=True)}
    numbers, counts = np.unique([component for component, _ in pairs], return_counts=True)
    parted: np.ndarray = numbers[counts > 1]
    return parted
