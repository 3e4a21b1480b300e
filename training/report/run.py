"""The report of a run: report.json for programs, report.md as a model card, report.html for people."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from shlex import quote
from typing import Any, Literal

import numpy as np
from matplotlib.figure import Figure

from serving.contract.files.names import MODEL
from serving.contract.model import Answers
from training.data import loader
from training.data.dataset import Dataset
from training.engine.progress import Epoch
from training.engine.runs import LATEST, PREDICTIONS, PREDICTIONS_VAL, REPORT, REPORT_FACTS
from training.metrics.calibration import held_for
from training.metrics.classification import TITLES, reliability, risk_coverage
from training.options.settled import SettledConfig
from training.report import figures, html
from training.report.audit import audit_facts, class_sheets, duplicate_examples
from training.report.decisions import curve_pictures, decision_lines
from training.report.predictions import MISTAKES, class_table, mistakes, worst_mistakes, write_predictions
from training.report.run_facts import ReportInput, decisions_on_test, run_facts

SHEET_ROWS, SHEET_COLUMNS = 6, 6


def write_report(inputs: ReportInput) -> None:
    """Write `report/` and the tables of predictions into the run's folder, all or none.

    Raises OSError whose message says that the model is complete.
    """
    run = inputs.config.run
    partial = run / ".report"
    shutil.rmtree(partial, ignore_errors=True)  # left by a run that was killed
    try:
        _write_into(partial, inputs)
        for table in partial.glob("*.csv"):
            table.replace(run / table.name)
        partial.replace(run / REPORT)
    except OSError as error:
        shutil.rmtree(partial, ignore_errors=True)
        lost = f"the report could not be written ({error.strerror}), but the model is complete"
        raise OSError(error.errno, lost, str(run / MODEL)) from error


def _write_into(folder: Path, inputs: ReportInput) -> None:
    dataset, answers = inputs.dataset, inputs.answers
    test = dataset.splits["test"]
    labels = dataset.labels[test]
    (folder / "figures").mkdir(parents=True)
    drawings = _curves(inputs.history)
    drawings["confusion"] = figures.confusion(inputs.scores["test"])
    drawings["reliability"] = figures.reliability(reliability(labels, answers), "test images")
    drawings["risk_coverage"] = figures.risk_coverage(risk_coverage(labels, answers))
    pictures = {}
    for name, figure in drawings.items():
        figure.savefig(folder / "figures" / f"{name}.png", dpi=120)
        drawn = html.svg(figure)
        (folder / "figures" / f"{name}.svg").write_bytes(drawn)
        pictures[name] = html.svg_uri(drawn)
    sheet = augmentation_sheet(inputs.config, dataset)
    if sheet is not None:
        sheet.savefig(folder / "figures" / "augmented.png", dpi=120)
        pictures["augmented"] = html.photo(sheet)

    decisions = decisions_on_test(inputs)
    facts = run_facts(inputs, decisions)
    audit = audit_facts(dataset.audit)
    own = inputs.out_of_fold is None  # else the answers to the validation split are once more those of the test split
    shown = {
        "pictures": pictures,
        "curve_pictures": curve_pictures(decisions),
        "decided_on": "test images",
        "held_for": held_for(inputs.card.calibration, dataset.classes),
        "mistakes": _mistakes(inputs, "test"),
        "validation_mistakes": _mistakes(inputs, "val") if own else None,
        "audit": audit,
        "pairs": duplicate_examples(dataset.audit, dataset.original),
        "sheets": class_sheets(dataset.audit, dataset.original),
    }
    table = class_table(inputs.scores["test"], inputs.intervals)
    (folder / "report.json").write_text(
        json.dumps(facts, indent=1, allow_nan=False, ensure_ascii=False), encoding="utf-8"
    )
    (folder / "report.html").write_text(html.render("report.html.jinja", **facts, **shown), encoding="utf-8")
    (folder / "report.md").write_text(
        html.render("report.md.jinja", **facts, audit=audit, class_table=table, held_for=shown["held_for"]),
        encoding="utf-8",
    )
    served = Answers(inputs.parity.served, inputs.parity.served_novelty)
    write_predictions(folder / PREDICTIONS, dataset, test, served, inputs.card)
    if own:
        write_predictions(folder / PREDICTIONS_VAL, dataset, dataset.splits["val"], inputs.validation, inputs.card)


def _mistakes(inputs: ReportInput, split: Literal["val", "test"]) -> list[dict[str, str]]:
    scored = inputs.scored(split)
    worst = worst_mistakes(scored.labels, scored.probabilities, MISTAKES)
    return mistakes(inputs.dataset, inputs.dataset.splits[split][worst], scored.probabilities[worst])


def run_summary(run: Path) -> str:
    """The table and lines that a run prints at its end."""
    facts = json.loads((run / REPORT_FACTS).read_text(encoding="utf-8"))
    rows = [f"{'':18}" + "".join(f"{split:>10}" for split in facts["scores"]) + "   95 % interval of test"]
    rows.append(f"{'images':18}" + "".join(f"{scored['images']:>10,}" for scored in facts["scores"].values()))
    for name, title in TITLES.items():
        cells = "".join(
            f"{'-' if scored[name] is None else format(scored[name], '.4f'):>10}" for scored in facts["scores"].values()
        )
        limits = facts["intervals"].get(name)
        rows.append(f"{title:18}{cells}" + (f"   {html.interval(limits)}" if limits else ""))
    parity = facts["parity"]
    worst = max(comparison["largest_difference"] for comparison in parity["comparisons"])
    ties = max(comparison.get("ties", 0) for comparison in parity["comparisons"])  # absent in runs of older versions
    model = Path(facts["model"])
    latest = run.parent / LATEST
    served = run.parent.resolve() == Path("runs").resolve() and latest.resolve() == run.resolve()
    return "\n".join(
        (
            "",
            *rows,
            "",
            *_promotion(facts.get("promotion")),  # absent in older versions' runs
            *(f"warning: {warning}" for warning in facts["warnings"]),
            *([facts["test_looks"]["sentence"]] if "test_looks" in facts else []),  # absent in older versions' runs
            *([] if facts["overfitting"] in facts["warnings"] else [facts["overfitting"]]),
            *_baseline(facts["shortcut"]),
            *decision_lines(facts["decisions"]),
            *([costs["sentence"]] if (costs := facts.get("costs")) else []),
            *html.novelty_lines(facts.get("unknown"), "test images"),  # absent in older versions' runs
            f"Parity held on all {parity['images']:,} test images: pixels equal, 0 labels differ"
            f"{f' (but {ties} between equally probable ones)' if ties else ''}, "
            f"probabilities within {worst:.1e} (at most {parity['tolerance']:g}).",
            *([views["sentence"]] if (views := facts.get("views")) else []),  # absent in older versions' runs
            *_int8(facts["quantized"]),
            "",
            f"report  {run / REPORT / 'report.html'}",
            f"model   {model}",
            f"curves  tensorboard --logdir {quote(str(run.parent))}",
            f"serve   {'' if served else f'TWINLENS_MODEL={quote(str(model))} '}bentoml serve --host 127.0.0.1",
        )
    )


def _promotion(promotion: dict[str, Any] | None) -> list[str]:
    if promotion is None:
        return []
    return [
        *(f"warning: {each}" for each in promotion.get("warnings", [])),  # absent in older versions' runs
        f"{'warning: ' if promotion['outcome'] == 'refused' else ''}{promotion['sentence']}",
    ]


def _int8(quantized: dict[str, Any] | None) -> list[str]:
    if quantized is None or not quantized["published"]:
        return []  # a warning says that it was not published
    return [
        f"model.int8.onnx: {quantized['agreement']:.1%} of the labels agree, accuracy "
        f"{quantized['scores']['accuracy']:.4f}; one image takes 1/{quantized['speed']:.1f} of the time, the file has "
        f"{quantized['size']:.0%} of the bytes."
    ]


def _baseline(shortcut: dict[str, float] | None) -> list[str]:
    if shortcut is None:
        return []
    best = max(shortcut["from_file"], shortcut["from_file_and_colour"])
    return [
        f"Balanced accuracy from size, format, bytes and mean colour alone: {best:.1%}; "
        f"of the model: {shortcut['model']:.1%}; by chance: {shortcut['chance']:.1%}."
    ]


def augmentation_sheet(config: SettledConfig, dataset: Dataset) -> Figure | None:
    """The first training image of each of up to six classes, with six random augmentations; None without augmentation.

    Mixup and CutMix, which come later and work on whole batches, are not shown.
    """
    if not config.augmented:
        return None
    train = dataset.splits["train"]
    _, first = np.unique(dataset.labels[train], return_index=True)
    originals = dataset.images[train[first[:SHEET_ROWS]]]
    columns = [originals] + [loader.augmented(originals, config, epoch) for epoch in range(SHEET_COLUMNS)]
    return figures.sheet(np.stack(columns, 1), "original")


def _curves(history: Sequence[Epoch]) -> dict[str, Figure]:
    epochs = [line.epoch for line in history]
    best = max(line.epoch for line in history if line.best)
    train, val = "training", "validation"
    gap = [line.train_accuracy - line.val_accuracy for line in history]
    return {
        name: figures.curve(title, epochs, lines, best)
        for name, title, lines in (
            ("loss", "loss", {val: [e.val_loss for e in history], train: [e.train_loss for e in history]}),
            (
                "accuracy",
                "accuracy",
                {val: [e.val_accuracy for e in history], train: [e.train_accuracy for e in history]},
            ),
            ("gap", "accuracy, training less validation", {"gap": gap}),
            ("learning_rate", "learning rate", {"learning rate": [e.lr for e in history]}),
        )
    }
