"""Scores by the value that was left out, and the gap to ordinary folds, whose models have seen the value.

The gap is paired: both answer the same images. A value that is left out also leaves fewer images to learn from, which
is a part of the gap.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from training.data.dataset import LabelledImages
from training.data.left_out import LeftOut
from training.engine.runs import PREDICTIONS
from training.folds.config import CHANGE_NO_FOLD
from training.folds.parts import FoldPart
from training.folds.results import OutOfFold
from training.metrics.classification import Probabilities, ScoredImages, score
from training.metrics.intervals.bootstrap import balanced_accuracy_difference
from training.metrics.intervals.proportions import Interval
from training.metrics.slices import Slicing
from training.metrics.subgroups import columns_by_score
from training.report.predictions import read_predictions

OPTIONS = "options.yaml"
"""File in the folder of the folds: the options of each training, as the user gave them."""
HOW = ("folds", "leave_out")
"""Options that make the parts."""


@dataclass(frozen=True, kw_only=True)
class Ordinary:
    """The answers of ordinary folds to the same images; None, and the reason, where there are none to compare with."""

    probabilities: Probabilities | None
    reason: str = ""


@dataclass(frozen=True, kw_only=True)
class LeftOutGap:
    """Balanced accuracy on the same images: left out minus `ordinary`, with its paired 95 % interval."""

    ordinary: float
    difference: float
    interval: Interval


def differing_options(theirs: dict[str, object], options: dict[str, object]) -> list[str]:
    """Names of the options by which folds differ."""
    names = [name for name in theirs | options if name not in CHANGE_NO_FOLD]
    return [name for name in names if theirs.get(name) != options.get(name)]


def find_ordinary(folder: Path, options: dict[str, object], images: LabelledImages, answers: OutOfFold) -> Ordinary:
    """The answers of the folds in `folder` to the images of `answers`, if they were made by the same options."""
    recorded = read_predictions(folder / PREDICTIONS, images.classes)
    if recorded is None or not (folder / OPTIONS).exists():
        return Ordinary(
            probabilities=None,
            reason="There are no ordinary folds to compare with. The same command without --leave-out makes them, and "
            "this one then adds the gap.",
        )
    theirs = yaml.safe_load((folder / OPTIONS).read_text(encoding="utf-8"))
    if differing := [name for name in differing_options(theirs, options) if name not in HOW]:
        reason = f"The folds in {folder.name} are not compared: they have another {', '.join(differing)}."
        return Ordinary(probabilities=None, reason=reason)
    probabilities = recorded.of([images.keys[index] for index in answers.indices])
    reason = (
        "" if probabilities is not None else f"The folds in {folder.name} are not compared: they are of other images."
    )
    return Ordinary(probabilities=probabilities, reason=reason)


def left_out_facts(
    images: LabelledImages, answers: OutOfFold, parts: Sequence[FoldPart], ordinary: Ordinary
) -> dict[str, Any]:
    """The scores of each value, the largest difference among them with its test, and the gaps."""
    which = LeftOut.of(parts[0].fold)
    assert which is not None
    codes = np.zeros(len(images.keys), np.int64)
    codes[answers.indices] = answers.fold
    slicing = Slicing(column=which.column, values=tuple(part.value or "" for part in parts), codes=codes, binned=False)
    scored = ScoredImages(
        labels=answers.labels,
        probabilities=answers.probabilities,
        components=images.components[answers.indices],
    )
    [column] = columns_by_score([slicing], answers.indices, scored, None)
    every = np.ones(len(answers.labels), bool)
    gaps = [_gap(scored, ordinary, answers.fold == code) for code in range(len(parts))]
    return {
        "column": which.column,
        "values": [
            asdict(group) | {"run": part.name, "gap": gap}
            for group, part, gap in zip(column.subgroups, parts, gaps, strict=True)
        ],
        "difference": asdict(column.gap) if column.gap else None,
        "warning": column.warning,
        "gap": _gap(scored, ordinary, every),
        "no_gap": ordinary.reason or None,
    }


def _gap(scored: ScoredImages, ordinary: Ordinary, rows: np.ndarray) -> dict[str, Any] | None:
    if ordinary.probabilities is None:
        return None
    labels, without_value, with_value = scored.labels[rows], scored.probabilities[rows], ordinary.probabilities[rows]
    names = tuple(map(str, range(without_value.shape[1])))
    before, now = (score(labels, answers, names).balanced_accuracy for answers in (with_value, without_value))
    interval = balanced_accuracy_difference(labels, with_value, without_value, scored.components[rows])
    return asdict(LeftOutGap(ordinary=before, difference=now - before, interval=interval))
