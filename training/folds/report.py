"""The report of folds: folds.html for people, folds.json for programs, predictions.csv and label-issues.csv."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from serving.contract.model import Answers
from training.data.dataset import Dataset
from training.engine.runs import PREDICTIONS
from training.folds.label_issues import LabelIssue, as_frequent, find_label_issues, write_label_issues
from training.folds.results import OutOfFold, fold_means
from training.metrics.classification import TITLES, reliability, score
from training.metrics.intervals.bootstrap import bootstrap
from training.report import figures, html
from training.report.predictions import write_predictions

ISSUES_SHOWN = 48
ISSUES = "label-issues.csv"


def write_folds_report(
    folder: Path, dataset: Dataset, answers: OutOfFold, by_value: dict[str, Any] | None = None
) -> None:
    """Write all four files into the folder; `by_value` are the scores by the values of --leave-out."""
    issues = find_label_issues(answers.labels, as_frequent(answers.labels, answers.probabilities))
    facts = _facts(folder, dataset, answers, issues) | {"left_out": by_value}
    pooled = score(answers.labels, answers.probabilities, dataset.classes)
    text = html.render(
        "folds.html.jinja",
        **facts,
        titles=TITLES,
        pictures={
            "confusion": html.drawing(figures.confusion(pooled)),
            "reliability": html.drawing(
                figures.reliability(reliability(answers.labels, answers.probabilities), "out-of-fold images")
            ),
        },
        shown=[
            {
                "key": dataset.keys[answers.indices[issue.row]],
                "picture": html.thumbnail(dataset.original(int(answers.indices[issue.row]))),
                "label": dataset.classes[answers.labels[issue.row]],
                "suggested": dataset.classes[issue.suggested],
                "probability": f"{issue.score:.0%}",
            }
            for issue in issues[:ISSUES_SHOWN]
        ],
    )
    write_predictions(folder / PREDICTIONS, dataset, answers.indices, Answers(answers.probabilities, None), None)
    write_label_issues(folder / ISSUES, dataset, answers.indices.tolist(), issues)
    (folder / "folds.json").write_text(
        json.dumps(facts, indent=1, allow_nan=False, ensure_ascii=False), encoding="utf-8"
    )
    (folder / "folds.html").write_text(text, encoding="utf-8")


def folds_summary(folder: Path) -> str:
    """The table and lines that folds print at their end."""
    facts = json.loads((folder / "folds.json").read_text(encoding="utf-8"))
    rows = _rows_of_folds(facts) if facts["left_out"] is None else _rows_of_values(facts["left_out"])
    issues = facts["issues"]
    return "\n".join(
        (
            "",
            *rows,
            "",
            f"labels       {issues['count']:,} of {facts['answered']:,} are probably wrong, the likeliest first in "
            f"{folder / ISSUES}",
            f"page         {folder / 'folds.html'}",
            f"scores       {folder / 'folds.json'}",
            f"predictions  {folder / PREDICTIONS}, each by a model that has not seen the image",
        )
    )


def _rows_of_folds(facts: dict[str, Any]) -> list[str]:
    rows = [f"{'':18}{'mean':>10}   95 % interval of such trainings"]
    for name, title in TITLES.items():
        mean = facts["means"][name]
        rows.append(
            f"{title:18}" + (f"{mean['mean']:10.4f}   {html.interval(mean['interval'])}" if mean else "         -")
        )
    return rows


def _rows_of_values(left_out: dict[str, Any]) -> list[str]:
    rows = [f"{left_out['column'] + ' left out':18}{'images':>10}   balanced accuracy, 95 %      gap to ordinary folds"]
    for each in left_out["values"]:
        scored = f"{html.number(each['balanced_accuracy'])}, {html.interval(each['balanced_accuracy_interval'])}"
        rows.append(f"{each['value']:18}{each['accuracy']['images']:10,}   {scored:25}   {html.gap(each['gap'])}")
    rows.append(f"{'all':41}{'':15}   {html.gap(left_out['gap'])}")
    return [*rows, *(line for line in (left_out["warning"], left_out["no_gap"]) if line)]


def _facts(folder: Path, dataset: Dataset, answers: OutOfFold, issues: Sequence[LabelIssue]) -> dict[str, Any]:
    """The content of folds.json, from which the page is filled too."""
    by_fold = answers.by_fold(dataset.classes)
    components = dataset.components[answers.indices]
    pooled = score(answers.labels, answers.probabilities, dataset.classes)
    intervals = bootstrap(answers.labels, answers.probabilities, components, dataset.classes)
    return {
        "name": folder.name,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "data": dataset.name,
        "images": len(dataset.keys),
        "answered": len(answers.indices),
        "classes": list(dataset.classes),
        "means": {name: asdict(mean) if mean else None for name, mean in fold_means(by_fold).items()},
        "pooled": asdict(pooled),
        "intervals": asdict(intervals),
        "folds": [
            {"run": str(run.relative_to(folder)), "images": scores.images, "scores": scores.headline()}
            for run, scores in zip(answers.runs, by_fold, strict=True)
        ],
        "issues": {
            "count": len(issues),
            "by_class": {
                name: sum(int(answers.labels[issue.row] == label) for issue in issues)
                for label, name in enumerate(dataset.classes)
            },
        },
    }
