"""Cost matrices: read from --costs, and what the answers of the least expected cost are worth beside the label."""

import csv
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float64, Int64

from serving.contract.card.decisions import Costs
from serving.contract.listing import clean
from training.data.sources.source import shortened
from training.errors import ConfigError
from training.metrics.classification import ScoredImages
from training.metrics.intervals.bootstrap import percentiles
from training.metrics.intervals.proportions import Interval
from training.metrics.intervals.resampling import resamples


@dataclass(frozen=True, kw_only=True)
class MeanCost:
    """Mean over the images, with its 95 % interval."""

    value: float
    interval: Interval


@dataclass(frozen=True, kw_only=True)
class MeasuredCosts:
    """Costs on scored images, in the unit of the matrix."""

    least: MeanCost
    """Mean cost of the actions of the least expected cost."""
    by_label: MeanCost
    """Mean cost of the most probable class as the answer."""
    difference: MeanCost
    """Least minus by label, paired on the same resamples: below 0, the costs pay."""
    actions: dict[str, int]
    """How many images each action is chosen for."""

    @property
    def sentence(self) -> str:
        """All three for a report."""
        least, label, difference = self.least, self.by_label, self.difference
        return (
            f"The answers of the least expected cost cost {least.value:.4g} an image ({_limits(least)}), the most "
            f"probable class {label.value:.4g} ({_limits(label)}); the paired difference is {difference.value:+.4g} "
            f"({_limits(difference)})."
        )


def _limits(mean: MeanCost) -> str:
    return f"{mean.interval[0]:.4g} to {mean.interval[1]:.4g}"


def read(path: Path, classes: Sequence[str]) -> Costs:
    """A matrix from a CSV file: rows are true classes, columns answers, both with their names.

    Every class must be a row and a column; other columns are actions that are no class. Raises ConfigError naming row
    and column.
    """
    lines = table(path)
    actions, rows = tuple(lines[0][1:]) if lines else (), lines[1:]
    names = [row[0] for row in rows]
    _check_names(path, "column", actions, classes, others=True)
    _check_names(path, "row", names, classes, others=False)
    by_class = {row[0]: _numbers(path, row, actions) for row in rows}
    return Costs(actions=actions, matrix=tuple(by_class[name] for name in classes))


def table(path: Path) -> list[list[str]]:
    """The cells of the file, not yet compared with any classes. Raises ConfigError where it cannot be read."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            return [[clean(cell) for cell in row] for row in csv.reader(file) if row]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ConfigError(f"--costs {path}: not a CSV file that can be read ({error})") from error


def check_rows(path: Path, classes: Sequence[str]) -> None:
    """Raise ConfigError where a row is none of the classes.

    Whether each class has a row is known when the images are read: a class of which none can be read is left out.
    """
    _refuse_others(path, "row", [row[0] for row in table(path)[1:]], classes)


def same(one: Path, other: Path) -> bool:
    """Whether two files hold the same matrix, whatever the order of their rows. Raises ConfigError."""
    first, second = (_cells(path) for path in (one, other))
    return first == second


def _cells(path: Path) -> tuple[list[str], dict[str, tuple[float, ...]]]:
    lines = table(path)
    actions = lines[0][1:] if lines else []
    return actions, {row[0]: _numbers(path, row, actions) for row in lines[1:]}


def write(path: Path, costs: Costs, classes: Sequence[str]) -> None:
    """Write a matrix as `read` reads it."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["", *costs.actions])
        writer.writerows([name, *map(repr, row)] for name, row in zip(classes, costs.matrix, strict=True))


def measure(
    costs: Costs, classes: Sequence[str], scored: ScoredImages, least_cost: Int64[np.ndarray, " images"]
) -> MeasuredCosts:
    """What both kinds of answers cost on scored images; probabilities have a column for each of `classes`.

    `least_cost` is the index of the action that the model's card chooses for each image.
    """
    matrix, columns = np.array(costs.matrix), np.array([costs.actions.index(name) for name in classes])
    least, by_label = matrix[scored.labels, least_cost], matrix[scored.labels, columns[scored.probabilities.argmax(1)]]
    counts = np.bincount(least_cost, minlength=len(costs.actions)).tolist()
    return MeasuredCosts(
        least=_mean(least, scored),
        by_label=_mean(by_label, scored),
        difference=_mean(least - by_label, scored),
        actions=dict(zip(costs.actions, counts, strict=True)),
    )


def _mean(values: Float64[np.ndarray, " images"], scored: ScoredImages) -> MeanCost:
    """The resamples depend on the components alone, so that all means are of the same ones."""
    drawn = resamples(scored.components, np.random.default_rng(0))
    means = np.concatenate([weights @ values / weights.sum(1) for weights in drawn])
    return MeanCost(value=float(values.mean()), interval=percentiles(means))


def _check_names(path: Path, what: str, names: Sequence[str], classes: Sequence[str], *, others: bool) -> None:
    if missing := [name for name in classes if name not in names]:
        raise ConfigError(f"--costs {path}: no {what} of class {shortened(missing)}; there are {shortened(names)}")
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ConfigError(f"--costs {path}: {what} {', '.join(twice)} several times")
    if "" in names:
        raise ConfigError(f"--costs {path}: a {what} without a name")
    if not others:
        _refuse_others(path, what, names, classes)


def _refuse_others(path: Path, what: str, names: Sequence[str], classes: Sequence[str]) -> None:
    if unknown := [name for name in names if name not in classes]:
        raise ConfigError(f"--costs {path}: {what} {shortened(unknown)} is no class; there are {shortened(classes)}")


def _numbers(path: Path, row: Sequence[str], actions: Sequence[str]) -> tuple[float, ...]:
    name, cells = row[0], row[1:]
    if len(cells) != len(actions):
        raise ConfigError(f"--costs {path}: row {name} has {len(cells)} costs for {len(actions)} columns")
    return tuple(_number(path, name, action, cell) for action, cell in zip(actions, cells, strict=True))


def _number(path: Path, name: str, action: str, cell: str) -> float:
    try:
        cost = float(cell)
    except ValueError:
        cost = math.nan
    if not (math.isfinite(cost) and cost >= 0):
        raise ConfigError(f"--costs {path}: row {name}, column {action}: expected a number of 0 or more, got {cell!r}")
    return cost
