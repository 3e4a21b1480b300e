"""A study: options that all runs share, axes on which they differ, and questions about what they show."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import Any

from serving.contract.objects import Url
from training.options.choices import ScoreName

Options = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One run of a study: its level on each axis, and its seed."""

    levels: dict[str, str]
    seed: int
    options: Options

    @property
    def name(self) -> str:
        """The name of the run's folder: its levels and seed."""
        parts = [f"{axis}={level}" for axis, level in self.levels.items()]
        return re.sub(r"[^\w=,.+-]+", "-", ",".join([*parts, f"seed={self.seed}"]))

    @property
    def score(self) -> ScoreName:
        """What runs are compared by: --best-by, or where it is open, which a run settles by its model, one for all.

        Of a log loss, lower is better.
        """
        return self.options.get("best_by") or "balanced_accuracy"


@dataclass(frozen=True, kw_only=True)
class Question:
    """A question about the runs: how levels of an axis differ in a measure from one of them, the reference."""

    ask: str
    measure: str
    axis: str
    compare: tuple[str, str] | None = None
    """A level and the reference; None: all levels are compared with the reference."""
    against: str | None = None
    """The reference for all; None: the best."""
    where: dict[str, str]
    """The level of other axes to which the question is restricted; over the remaining axes the mean is taken."""


@dataclass(frozen=True, kw_only=True)
class Range:
    """Values of an option that a search may draw from; whole numbers where both ends are."""

    low: float
    high: float
    log: bool = False


@dataclass(frozen=True, kw_only=True)
class Study:
    """A checked specification: every option exists and every value has its type."""

    title: str
    base: Options
    axes: dict[str, dict[str, Options]]
    ranges: dict[str, Range] = field(default_factory=dict)
    """By option; a grid has none, `study search` draws from them."""
    seeds: int
    questions: tuple[Question, ...]

    def cells(self) -> list[Cell]:
        """Every combination of levels with every seed, seed by seed, so that the first finished runs are comparable."""
        return [self._cell(levels, seed) for seed in range(self.seeds) for levels in product(*self.axes.values())]

    def some_cells(self, most: int) -> list[Cell]:
        """Every combination of levels with the first seed; where they are more than `most`, each level once."""
        if math.prod(map(len, self.axes.values())) <= most:
            return [self._cell(levels, 0) for levels in product(*self.axes.values())]
        first = {axis: next(iter(levels)) for axis, levels in self.axes.items()}
        chosen = [first, *(first | {axis: level} for axis, levels in self.axes.items() for level in [*levels][1:])]
        return [self._cell(tuple(levels.values()), 0) for levels in chosen]

    def _cell(self, levels: Sequence[str], seed: int) -> Cell:
        of_axis = dict(zip(self.axes, levels, strict=True))
        options = {name: value for axis, level in of_axis.items() for name, value in self.axes[axis][level].items()}
        return Cell(levels=of_axis, seed=seed, options=self.base | options)

    def with_base(self, options: Options) -> "Study":
        """The same study with these options for all runs; the options of an axis take precedence."""
        return replace(self, base=self.base | options)


def plain(options: Options) -> Options:
    """The same options with values that YAML and JSON have: lists for tuples, text for paths."""

    def as_plain(value: Any) -> Any:
        return list(value) if isinstance(value, tuple) else str(value) if isinstance(value, Path | Url) else value

    return {name: as_plain(value) for name, value in options.items()}
