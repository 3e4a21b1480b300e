"""The results of a study's runs, read from their folders, on whatever machine they were trained."""

import csv
import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any, Literal

from training.data.sources.source import Split
from training.engine import history
from training.engine.history import History
from training.engine.progress import Epoch
from training.engine.runs import REPORT_FACTS, is_finished
from training.models.diagnostics import AtStart
from training.options.choices import ScoreName
from training.study.measures import IN_EQUAL_TIME, MEASURES, ReferenceValues, RunMeasurements, rising
from training.study.spec.grid import Cell, Study

Outcome = Literal["done", "diverged", "failed", "not run"]


@dataclass(frozen=True, kw_only=True)
class RunResult:
    """One run of the grid and its measures."""

    cell: Cell
    folder: Path
    outcome: Outcome
    reason: str
    """Why the run diverged or failed; else empty."""
    values: dict[str, float | None]
    """By measure."""
    epochs: Sequence[Epoch]
    at_start: Sequence[AtStart]


def outcome(run: Path) -> Outcome:
    """The outcome by the folder of a run; `failed` if it started and is not finished."""
    if is_finished(run):
        return "done"
    record = history.read(run)
    if record is not None and record.diverged is not None:
        return "diverged"
    return "failed" if run.exists() or log(run).exists() else "not run"


def log(run: Path) -> Path:
    """The file with the console output of the run in this folder."""
    return run.parent.parent / "logs" / f"{run.name}.log"


def collect_results(study: Study, folders: Sequence[Path]) -> list[RunResult]:
    """The result of each cell of the grid, in its order, from the first of the study's folders that holds its run."""
    runs = {}
    for cell in study.cells():
        candidates = [folder / "runs" / cell.name for folder in folders]
        runs[cell.name] = next((run for run in candidates if run.exists()), candidates[0])
    histories = {cell.name: read_history(runs[cell.name], cell.score) for cell in study.cells()}
    done = {name: record if outcome(runs[name]) == "done" else None for name, record in histories.items()}
    references = reference_values(study, done)
    return [_result(cell, runs[cell.name], histories[cell.name], references) for cell in study.cells()]


def read_history(run: Path, score: ScoreName) -> History | None:
    """The history of a run, its validation scores being this one; of the network before its bias is fitted.

    None before the run's first step. A run chose its epoch by its own --best-by, which is `score` unless that was open.
    """
    record = history.read(run)
    if record is None or score != "balanced_accuracy":
        return record
    return replace(record, epochs=[replace(line, val_score=line.val_balanced_accuracy) for line in record.epochs])


def read_scores(run: Path) -> dict[Split, dict[str, Any]]:
    """The scores of the exported model of a finished run, by split."""
    report = json.loads((run / REPORT_FACTS).read_text(encoding="utf-8"))
    scores: dict[Split, dict[str, Any]] = report["scores"]
    return scores


def reference_values(study: Study, histories: Mapping[str, History | None]) -> dict[int, ReferenceValues]:
    """By seed, what its runs are measured against; `histories` of finished ones by the name of the cell."""
    times: dict[int, list[float]] = defaultdict(list)
    scores: dict[int, list[float]] = defaultdict(list)
    for cell in study.cells():
        record = histories[cell.name]
        if record is None:
            continue
        if (final := rising(record.epochs, cell.score)[-1].val_score) is not None:
            scores[cell.seed].append(final)
        if _is_timed(study, cell):
            times[cell.seed].append(sum(line.seconds for line in record.epochs))
    return {
        seed: ReferenceValues(
            time_s=min(times[seed], default=0.0), common_score=median(scores[seed]) if scores[seed] else None
        )
        for seed in range(study.seeds)
    }


def _result(cell: Cell, run: Path, record: History | None, references: Mapping[int, ReferenceValues]) -> RunResult:
    state = outcome(run)
    values: dict[str, float | None] = dict.fromkeys(MEASURES)
    if record is not None and state in ("done", "diverged"):
        scores = read_scores(run) if state == "done" else None
        measurements = RunMeasurements(history=record, scores=scores, reference=references[cell.seed], score=cell.score)
        values = {name: measure.value_of(measurements) for name, measure in MEASURES.items()}
    return RunResult(
        cell=cell,
        folder=run,
        outcome=state,
        reason=_reason(run, state, record),
        values=values,
        epochs=record.epochs if record else [],
        at_start=record.at_start if record else [],
    )


def write_csv(path: Path, study: Study, results: Iterable[RunResult]) -> None:
    """Write a line for each run: levels, seed, outcome, reason, all measures, folder."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow([*study.axes, "seed", "outcome", "reason", *MEASURES, "run"])
        for result in results:
            levels = [result.cell.levels[axis] for axis in study.axes]
            writer.writerow(
                [*levels, result.cell.seed, result.outcome, result.reason, *result.values.values(), result.folder]
            )


def _is_timed(study: Study, cell: Cell) -> bool:
    """Whether a question compares this cell in equal time; without such a question, all cells are compared."""
    pairs = [(question.axis, question.compare) for question in study.questions if question.measure == IN_EQUAL_TIME]
    compared = [(axis, pair) for axis, pair in pairs if pair]
    return not compared or any(cell.levels[axis] in pair for axis, pair in compared)


def _reason(run: Path, state: Outcome, record: History | None) -> str:
    if state == "diverged":
        assert record is not None
        assert record.diverged is not None
        return record.diverged
    if state != "failed":
        return ""
    lines = log(run).read_text(errors="replace").strip().splitlines() if log(run).exists() else []
    errors = [line for line in lines if line.startswith("error: ")]
    return (errors or lines or ["it wrote no output"])[-1].removeprefix("error: ")
