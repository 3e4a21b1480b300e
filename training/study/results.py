"""What became of a study's runs: read from their folders, so that whoever made them, wherever, does not matter."""

import csv
import json
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Literal

from training.engine import history, runs
from training.engine.progress import Epoch
from training.models.diagnostics import AtStart
from training.study.measures import IN_EQUAL_TIME, MEASURES, Seen
from training.study.spec import Cell, Study

Outcome = Literal["done", "diverged", "failed", "not run"]


@dataclass(frozen=True, kw_only=True)
class Result:
    """One run of the grid and what is measured of it."""

    cell: Cell
    folder: Path
    outcome: Outcome
    reason: str
    """Why it did not end well; empty if it did."""
    values: dict[str, float | None]
    """By measure."""
    epochs: Sequence[Epoch]
    at_start: Sequence[AtStart]


def outcome(run: Path) -> Outcome:
    """What the folder of a run says has become of it; `failed` of one that has begun and not ended."""
    if runs.is_finished(run):
        return "done"
    seen = history.read(run)
    if seen is not None and seen.diverged is not None:
        return "diverged"
    return "failed" if run.exists() or log(run).exists() else "not run"


def log(run: Path) -> Path:
    """Where a study keeps what the run of this folder printed."""
    return run.parent.parent / "logs" / f"{run.name}.log"


def collect(study: Study, folders: Sequence[Path]) -> list[Result]:
    """All cells of the grid in its order, each from the first of the study's folders that holds its run."""
    found = []
    for cell in study.cells():
        runs_of_it = [folder / "runs" / cell.name for folder in folders]
        found.append((cell, next((run for run in runs_of_it if run.exists()), runs_of_it[0])))
    seen_by = {cell.name: history.read(run) for cell, run in found}
    time_by_seed: dict[int, float] = {}
    finals_by_seed: dict[int, list[float]] = defaultdict(list)
    for cell, _ in found:
        seen = seen_by[cell.name]
        if seen is None or seen.diverged is not None or not seen.epochs:
            continue
        if (final := seen.epochs[-1].val_score) is not None:
            finals_by_seed[cell.seed].append(final)
        if _is_timed(study, cell):
            took = sum(line.seconds for line in seen.epochs)
            time_by_seed[cell.seed] = min(took, time_by_seed.get(cell.seed, took))
    results = []
    for cell, run in found:
        state, seen = outcome(run), seen_by[cell.name]
        values: dict[str, float | None] = dict.fromkeys(MEASURES)
        if seen is not None and state in ("done", "diverged"):
            report = run / "report" / "report.json"
            scores = json.loads(report.read_text())["scores"] if state == "done" else None
            finals = finals_by_seed[cell.seed]
            measured = Seen(
                history=seen,
                scores=scores,
                time_s=time_by_seed.get(cell.seed, 0.0),
                common_score=median(finals) if finals else None,
            )
            values = {name: measure.of(measured) for name, measure in MEASURES.items()}
        results.append(
            Result(
                cell=cell,
                folder=run,
                outcome=state,
                reason=_reason(run, state, seen),
                values=values,
                epochs=seen.epochs if seen else [],
                at_start=seen.at_start if seen else [],
            )
        )
    return results


def write_csv(path: Path, study: Study, results: Iterable[Result]) -> None:
    """A line for each run: levels, seed, what became of it, all measures, its folder."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow([*study.axes, "seed", "outcome", "reason", *MEASURES, "run"])
        for result in results:
            levels = [result.cell.levels[axis] for axis in study.axes]
            writer.writerow(
                [*levels, result.cell.seed, result.outcome, result.reason, *result.values.values(), result.folder]
            )


def _is_timed(study: Study, cell: Cell) -> bool:
    """Whether a question compares this cell in equal time; every cell where no question says what is compared."""
    pairs = [(asked.axis, asked.compare) for asked in study.questions if asked.measure == IN_EQUAL_TIME]
    compared = [(axis, pair) for axis, pair in pairs if pair]
    return not compared or any(cell.levels[axis] in pair for axis, pair in compared)


def _reason(run: Path, state: Outcome, seen: history.History | None) -> str:
    if state == "diverged":
        assert seen is not None
        assert seen.diverged is not None
        return seen.diverged
    if state != "failed":
        return ""
    lines = log(run).read_text(errors="replace").strip().splitlines() if log(run).exists() else []
    errors = [line for line in lines if line.startswith("error: ")]
    return (errors or lines or ["it left nothing"])[-1].removeprefix("error: ")
