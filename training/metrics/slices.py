"""Which columns of a manifest divide the images into subgroups, and the value of each image.

A column of numbers with more than 20 values is binned by the quartiles of the training split.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
from jaxtyping import Int64

from serving.contract.listing import clean
from training.data.dataset import LabelledImages
from training.data.inspection.image_set import ImageSet
from training.data.left_out import column_of
from training.data.sources.source import Source
from training.errors import ConfigError

MOST_VALUES = 20
QUARTILES = (0.25, 0.5, 0.75)
NONE = "none"
"""Value of --slices: no column."""
NOT_GIVEN = "not given"


@dataclass(frozen=True, kw_only=True)
class Slicing:
    """One column: its values, and which of them each image has."""

    column: str
    values: tuple[str, ...]
    """In order; numbers by size, `not given` last."""
    codes: Int64[np.ndarray, " images"]
    """Index in `values`."""
    binned: bool


@dataclass(frozen=True, kw_only=True)
class Slices:
    """The columns that divide the images."""

    columns: list[Slicing] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)
    """Columns that nobody asked for and that divide nothing, and the reason."""


def slices(images: LabelledImages, requested: str | None, indices: Int64[np.ndarray, " _"]) -> Slices:
    """The columns that --slices names; None: all that divide the images.

    Quartiles are those of the training split, or where there is none of the images `indices`. Raises ConfigError for a
    named column that does not exist or divides nothing.
    """
    train = images.splits["train"]
    by_name = {name: _slicing(name, images.columns[name], train if len(train) else indices) for name in images.columns}
    if requested is None:
        return Slices(
            columns=[each for each in by_name.values() if isinstance(each, Slicing)],
            left_out={name: each for name, each in by_name.items() if isinstance(each, str)},
        )
    check_columns(requested, images.image_set)
    return Slices(columns=[_named(name, by_name[name]) for name in _names(requested)])


def check_columns(requested: str | None, images: ImageSet | Source) -> None:
    """Raise ConfigError for a column that --slices names and that the data does not have."""
    for name in _names(requested):
        column_of(images, name, "--slices")


def _names(requested: str | None) -> list[str]:
    return (
        [] if requested in (None, NONE) else list(dict.fromkeys(clean(name).lower() for name in requested.split(",")))
    )


def _named(name: str, slicing: Slicing | str) -> Slicing:
    if isinstance(slicing, str):
        raise ConfigError(f"--slices {name}: {slicing}; expected 2 to {MOST_VALUES} values, or numbers")
    return slicing


def _slicing(column: str, values: Sequence[str], reference: np.ndarray) -> Slicing | str:
    """The slicing by a column, or why there is none."""
    different = sorted(set(values) - {""}, key=_by_size)
    absent = [NOT_GIVEN] if "" in values else []
    count = len(different) + len(absent)
    if count < 2:
        return "all images have the same value"
    if count <= MOST_VALUES:
        codes = {value: code for code, value in enumerate([*different, *([""] if absent else [])])}
        named = tuple(different + absent)
        return Slicing(column=column, values=named, codes=np.array([codes[v] for v in values], np.int64), binned=False)
    numbers = np.array([_number(value) if value else math.nan for value in values])
    if any(_number(value) is None for value in different):
        return f"{count:,} values that are not all numbers"
    given = numbers[reference]
    if np.isnan(given).all():
        return "no training image has a number"
    edges = np.unique(np.nanquantile(given, QUARTILES))
    written = [f"{edge:g}" for edge in edges]
    between = [f"over {low} to {high}" for low, high in pairwise(written)]
    codes_of_bins = np.where(np.isnan(numbers), len(edges) + 1, np.searchsorted(edges, numbers)).astype(np.int64)
    names = (f"up to {written[0]}", *between, f"over {written[-1]}", *absent)
    return Slicing(column=column, values=names, codes=codes_of_bins, binned=True)


def _number(value: str) -> float | None:
    try:
        number = float(value)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def _by_size(value: str) -> tuple[bool, float, str]:
    number = _number(value)
    return number is None, number or 0.0, value
