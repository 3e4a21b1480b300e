"""What a study found: study.html and study.md for people, study.json for programs, results.csv as a table."""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from itertools import product
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from matplotlib.figure import Figure

from training.report import figures
from training.report import html as page
from training.report.figures import Panels
from training.storage import write_atomically
from training.study import results
from training.study import spec as grid
from training.study.measures import MEASURES
from training.study.results import Result
from training.study.spec import Question, Study
from training.study.statistics import answer

COLUMNS = (
    "val_score",
    "test_balanced_accuracy",
    "gap",
    "train_loss",
    "epochs_to_95",
    "loss_variance",
    "seconds_an_epoch",
    "steps_an_epoch",
    "parameters",
)


def write(folder: Path, study: Study, found: Sequence[Result]) -> None:
    """Write study.html, study.md, study.json and results.csv into the study's folder."""
    results.write_csv(folder / "results.csv", study, found)
    facts = _facts(folder, study, found)
    pictures = {name: page.svg(drawing) for name, drawing in _drawings(study, found).items()}
    (folder / "figures").mkdir(exist_ok=True)
    for name, drawn in pictures.items():
        (folder / "figures" / f"{name}.svg").write_bytes(drawn)
    shown = {name: page.svg_uri(drawn) for name, drawn in pictures.items()}
    for name, text in {
        "study.json": json.dumps(facts, indent=1, allow_nan=False, ensure_ascii=False),
        "study.html": page.render("study.html.jinja", **facts, pictures=shown),
        "study.md": page.render("study.md.jinja", **facts, pictures=sorted(pictures)),
    }.items():
        write_atomically(folder / name, lambda file, text=text: file.write(text.encode()))  # type: ignore[misc]


def summary(folder: Path) -> str:
    """The answers, for the console."""
    facts = json.loads((folder / "study.json").read_text())
    lines = ["", facts["runs"]["sentence"]]
    for found in facts["answers"]:
        lines += ["", found["ask"], f"  {found['sentence']}"]
    lines += ["", f"report  {folder / 'study.html'}", f"curves  tensorboard --logdir {folder / 'runs'}"]
    return "\n".join(lines)


def _facts(folder: Path, study: Study, found: Sequence[Result]) -> dict[str, Any]:
    """What study.json holds, and what both templates are filled with."""
    return {
        "name": folder.name,
        "title": study.title,
        "base": grid.plain(study.base),
        "axes": {axis: {level: grid.plain(given) for level, given in of.items()} for axis, of in study.axes.items()},
        "seeds": study.seeds,
        "answers": [_answer(question, found) for question in study.questions],
        "runs": _runs(found),
        "measures": {name: {"title": measure.title, "places": measure.places} for name, measure in MEASURES.items()},
        "columns": COLUMNS,
        "rows": _rows(study, found),
        "results": [_result(folder, result) for result in found],
    }


def _answer(question: Question, found: Sequence[Result]) -> dict[str, Any]:
    said = answer(question, found)
    if said is None:
        nothing = "No run that was asked of has a value."
        return asdict(question) | {"sentence": nothing, "decided": False, "reference": None, "differences": []}
    return asdict(question) | {name: value for name, value in asdict(said).items() if name != "question"}


def _runs(found: Sequence[Result]) -> dict[str, Any]:
    """How many runs ended how, and why those did that did not end well."""
    counts = Counter(result.outcome for result in found)
    said = ", ".join(f"{count} {outcome}" for outcome, count in counts.items())
    lost = [result.cell.name for result in found if result.outcome == "diverged"]
    diverged = f"{len(lost)} diverged: {'; '.join(lost)}." if lost else "None diverged."
    return {
        "sentence": f"{len(found)} runs: {said}. {diverged}",
        "counts": counts,
        "not_well": [
            {"run": result.cell.name, "outcome": result.outcome, "reason": result.reason}
            for result in found
            if result.reason
        ],
    }


def _rows(study: Study, found: Sequence[Result]) -> list[dict[str, Any]]:
    """Mean and standard deviation over the seeds, for each combination of levels."""
    rows = []
    for levels in product(*study.axes.values()):
        mine = [result for result in found if tuple(result.cell.levels.values()) == levels]
        cells = {}
        for name in COLUMNS:
            values = [value for result in mine if (value := result.values[name]) is not None]
            cells[name] = {
                "mean": fmean(values) if values else None,
                "deviation": stdev(values) if len(values) > 1 else None,
            }
        rows.append({"levels": levels, "outcomes": Counter(result.outcome for result in mine), "measures": cells})
    return rows


def _result(folder: Path, result: Result) -> dict[str, Any]:
    inside = result.folder.is_relative_to(folder)
    return {
        "levels": result.cell.levels,
        "seed": result.cell.seed,
        "outcome": result.outcome,
        "reason": result.reason,
        "run": str(result.folder.relative_to(folder) if inside else result.folder.absolute()),
        "measures": result.values,
        "epochs": [asdict(line) for line in result.epochs],
        "at_start": [asdict(layer) for layer in result.at_start],
    }


def _drawings(study: Study, found: Sequence[Result]) -> dict[str, Figure]:
    """Curves by epoch, and signal and gradient by layer, a panel for each combination of levels of the other axes.

    The lines are the levels of the axis that has most of them.
    """
    lines = max(study.axes, key=lambda axis: len(study.axes[axis]))
    panels: dict[str, dict[str, list[Result]]] = {}
    for result in found:
        others = [f"{axis} {level}" for axis, level in result.cell.levels.items() if axis != lines]
        panel = panels.setdefault(", ".join(others), {level: [] for level in study.axes[lines]})
        panel[result.cell.levels[lines]].append(result)

    def of_epochs(name: str) -> Panels:
        return {
            title: {
                level: [[getattr(line, name) for line in result.epochs] for result in of] for level, of in shown.items()
            }
            for title, shown in panels.items()
        }

    def of_layers(name: str) -> Panels:
        return {
            title: {
                level: [[getattr(layer, name) for layer in result.at_start] for result in of]
                for level, of in shown.items()
            }
            for title, shown in panels.items()
        }

    return {
        "val_score": figures.bands("validation score", "epoch", of_epochs("val_score")),
        "train_loss": figures.bands("training loss", "epoch", of_epochs("train_loss")),
        "signal": figures.bands("variance of outputs", "layer", of_layers("output_variance")),
        "gradient": figures.bands("variance of gradients", "layer", of_layers("gradient_variance")),
    }
