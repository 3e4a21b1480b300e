"""The report of a study: study.html and study.md for people, study.json for programs, results.csv as a table."""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from itertools import product
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from matplotlib.figure import Figure

from training.report import figures, html
from training.report.figures import Panels
from training.storage import write_atomically
from training.study.conclusions import Conclusion, conclude, why_none
from training.study.measures import MEASURES
from training.study.outlook import image_outlook, seed_outlook
from training.study.results import RunResult, write_csv
from training.study.spec.grid import Question, Study, plain
from training.study.statistics import LevelDifference

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


def write_study_report(folder: Path, study: Study, results: Sequence[RunResult]) -> None:
    """Write study.html, study.md, study.json and results.csv into the study's folder."""
    write_csv(folder / "results.csv", study, results)
    facts = _facts(folder, study, results)
    pictures = {name: html.svg(drawing) for name, drawing in _drawings(study, results).items()}
    (folder / "figures").mkdir(exist_ok=True)
    for name, drawn in pictures.items():
        (folder / "figures" / f"{name}.svg").write_bytes(drawn)
    shown = {name: html.svg_uri(drawn) for name, drawn in pictures.items()}
    for name, text in {
        "study.json": json.dumps(facts, indent=1, allow_nan=False, ensure_ascii=False),
        "study.html": html.render("study.html.jinja", **facts, pictures=shown),
        "study.md": html.render("study.md.jinja", **facts, pictures=sorted(pictures)),
    }.items():
        write_atomically(folder / name, lambda file, text=text: file.write(text.encode()))  # type: ignore[misc]


def study_summary(folder: Path) -> str:
    """The answers that a study prints at its end."""
    facts = json.loads((folder / "study.json").read_text(encoding="utf-8"))
    lines = ["", facts["runs"]["sentence"]]
    for answer in facts["answers"]:
        lines += ["", answer["ask"], f"  {answer['sentence']}"]
    if more := [each["sentence"] for each in facts["more_images"] + facts["more_seeds"]]:
        lines += ["", "How many more?", *(f"  {sentence}" for sentence in more)]
    lines += ["", f"report  {folder / 'study.html'}", f"curves  tensorboard --logdir {folder / 'runs'}"]
    return "\n".join(lines)


def _facts(folder: Path, study: Study, results: Sequence[RunResult]) -> dict[str, Any]:
    """The content of study.json, from which both templates are filled too."""
    conclusions = conclude(study.questions, results)
    return {
        "name": folder.name,
        "title": study.title,
        "base": plain(study.base),
        "axes": {
            axis: {level: plain(options) for level, options in levels.items()} for axis, levels in study.axes.items()
        },
        "seeds": study.seeds,
        "answers": [
            _answer(question, conclusion, results)
            for question, conclusion in zip(study.questions, conclusions, strict=True)
        ],
        "more_images": image_outlook(study, results),
        "more_seeds": seed_outlook(conclusions),
        "runs": _runs(results),
        "measures": {name: {"title": measure.title, "places": measure.places} for name, measure in MEASURES.items()},
        "columns": COLUMNS,
        "rows": _rows(study, results),
        "results": [_result(folder, result) for result in results],
    }


def _answer(question: Question, conclusion: Conclusion | None, results: Sequence[RunResult]) -> dict[str, Any]:
    if conclusion is None:
        nothing = why_none(question, results)
        return asdict(question) | {"sentence": nothing, "decided": False, "reference": None, "differences": []}
    return asdict(question) | {
        "sentence": conclusion.sentence,
        "decided": conclusion.decided,
        "reference": conclusion.reference,
        "differences": [_difference(row) for row in conclusion.differences],
    }


def _difference(difference: LevelDifference) -> dict[str, Any]:
    facts = asdict(difference)
    facts["not_reached"] = facts.pop("censored")
    return facts | {"verdict": difference.verdict}


def _runs(results: Sequence[RunResult]) -> dict[str, Any]:
    """The number of runs by outcome, and the reason of each that did not finish."""
    counts = Counter(result.outcome for result in results)
    outcomes = ", ".join(f"{count} {outcome}" for outcome, count in counts.items())
    lost = [result.cell.name for result in results if result.outcome == "diverged"]
    diverged = f"{len(lost)} diverged: {'; '.join(lost)}." if lost else "None diverged."
    return {
        "sentence": f"{len(results)} runs: {outcomes}. {diverged}",
        "counts": counts,
        "not_well": [
            {"run": result.cell.name, "outcome": result.outcome, "reason": result.reason}
            for result in results
            if result.reason
        ],
    }


def _rows(study: Study, results: Sequence[RunResult]) -> list[dict[str, Any]]:
    """Mean and standard deviation over the seeds, for each combination of levels."""
    rows = []
    for levels in product(*study.axes.values()):
        of_cell = [result for result in results if tuple(result.cell.levels.values()) == levels]
        cells = {}
        for name in COLUMNS:
            values = [value for result in of_cell if (value := result.values[name]) is not None]
            cells[name] = {
                "mean": fmean(values) if values else None,
                "deviation": stdev(values) if len(values) > 1 else None,
            }
        rows.append({"levels": levels, "outcomes": Counter(result.outcome for result in of_cell), "measures": cells})
    return rows


def _result(folder: Path, result: RunResult) -> dict[str, Any]:
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


def _drawings(study: Study, results: Sequence[RunResult]) -> dict[str, Figure]:
    """Curves by epoch, and signal and gradient by layer, a panel for each combination of levels of the other axes.

    The lines are the levels of the axis that has most of them.
    """
    lines = max(study.axes, key=lambda axis: len(study.axes[axis]))
    panels: dict[str, dict[str, list[RunResult]]] = {}
    for result in results:
        others = [f"{axis} {level}" for axis, level in result.cell.levels.items() if axis != lines]
        panel = panels.setdefault(", ".join(others), {level: [] for level in study.axes[lines]})
        panel[result.cell.levels[lines]].append(result)

    def of_epochs(name: str) -> Panels:
        return {
            title: {
                level: [[getattr(line, name) for line in result.epochs] for result in group]
                for level, group in shown.items()
            }
            for title, shown in panels.items()
        }

    def of_layers(name: str) -> Panels:
        return {
            title: {
                level: [[getattr(layer, name) for layer in result.at_start] for result in group]
                for level, group in shown.items()
            }
            for title, shown in panels.items()
        }

    return {
        "val_score": figures.bands("validation score", "epoch", of_epochs("val_score")),
        "train_loss": figures.bands("training loss", "epoch", of_epochs("train_loss")),
        "signal": figures.bands("variance of outputs", "layer", of_layers("output_variance")),
        "gradient": figures.bands("variance of gradients", "layer", of_layers("gradient_variance")),
    }
