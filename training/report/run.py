"""The evaluation report: report.json for programs, report.md as a model card, report.html for people."""

import csv
import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from serving.contract.card import TOLERANCE, ModelCard
from training.data import augmentation
from training.data.dataset import Dataset, LabelledImages
from training.data.formats import Split
from training.data.metadata_baseline import LARGE_SHARE
from training.engine.progress import Epoch
from training.export.parity import TIE, Parity
from training.export.quantization import AGREEMENT, Quantized
from training.metrics.bootstrap import Interval, Intervals
from training.metrics.calibration import MIN_IMAGES, coverage
from training.metrics.classification import (
    CALIBRATION_TITLES,
    OVERFITTING_GAP,
    TITLES,
    Labels,
    Probabilities,
    Scores,
    overfitting,
    reliability,
    risk_coverage,
)
from training.report import audit as audit_report
from training.report import figures
from training.report import html as page
from training.settled import SettledConfig

MISTAKES = 24
SHEET_ROWS, SHEET_COLUMNS = 6, 6


@dataclass(frozen=True, kw_only=True)
class Findings:
    """All that a run found out, which the report puts into words and pictures; `uncalibrated` is of the test split."""

    config: SettledConfig
    card: ModelCard
    dataset: Dataset
    history: Sequence[Epoch]
    scores: dict[Split, Scores]
    intervals: Intervals
    uncalibrated: Scores
    parity: Parity
    quantized: Quantized | None
    """The file in eight bits, where one was asked for."""
    environment: dict[str, str]


def write(found: Findings) -> None:
    """Write `report/` and `predictions.csv` into the run's folder, both or neither.

    Raises OSError saying that the model is complete all the same.
    """
    run = found.config.run
    partial = run / ".report"
    shutil.rmtree(partial, ignore_errors=True)  # of an earlier try that was killed
    try:
        _write_into(partial, found)
        (partial / "predictions.csv").replace(run / "predictions.csv")
        partial.replace(run / "report")
    except OSError as error:
        shutil.rmtree(partial, ignore_errors=True)
        lost = f"the report could not be written ({error.strerror}), but the model is complete"
        raise OSError(error.errno, lost, str(run / "model.onnx")) from error


def _write_into(folder: Path, found: Findings) -> None:
    dataset, served = found.dataset, found.parity.served
    test = dataset.splits["test"]
    labels = dataset.labels[test]
    (folder / "figures").mkdir(parents=True)
    drawings = _curves(found.history)
    drawings["confusion"] = figures.confusion(found.scores["test"])
    drawings["reliability"] = figures.reliability(reliability(labels, served), "test images")
    drawings["risk_coverage"] = figures.risk_coverage(risk_coverage(labels, served))
    pictures = {}
    for name, figure in drawings.items():
        figure.savefig(folder / "figures" / f"{name}.png", dpi=120)
        drawn = page.svg(figure)
        (folder / "figures" / f"{name}.svg").write_bytes(drawn)
        pictures[name] = page.svg_uri(drawn)
    sheet = augmented(found.config, dataset)
    if sheet is not None:
        sheet.savefig(folder / "figures" / "augmented.png", dpi=120)
        pictures["augmented"] = page.photo(sheet)

    facts = _facts(found)
    audit = audit_report.facts(dataset.audit)
    worst = worst_mistakes(labels, served, MISTAKES)
    shown = {
        "pictures": pictures,
        "mistakes": mistakes(dataset, test[worst], served[worst]),
        "audit": audit,
        "pairs": audit_report.examples(dataset.audit, dataset.original),
        "sheets": audit_report.sheets(dataset.audit, dataset.original),
    }
    table = class_table(found.scores["test"], found.intervals)
    (folder / "report.json").write_text(
        json.dumps(facts, indent=1, allow_nan=False, ensure_ascii=False), encoding="utf-8"
    )
    (folder / "report.html").write_text(page.render("report.html.jinja", **facts, **shown), encoding="utf-8")
    (folder / "report.md").write_text(
        page.render("report.md.jinja", **facts, audit=audit, class_table=table), encoding="utf-8"
    )
    write_predictions(folder / "predictions.csv", dataset, test, served)


def _facts(found: Findings) -> dict[str, object]:
    """What report.json holds, and what both templates are filled with."""
    dataset, scores, parity = found.dataset, found.scores, found.parity
    labels = dataset.labels[dataset.splits["test"]]
    sets = coverage(labels, parity.served, found.card.calibration, dataset.classes)
    return {
        "run": found.config.run.name,
        "model": str(found.config.run / "model.onnx"),
        "warnings": list(_warnings(found)),
        "data": {
            "name": dataset.name,
            "images": len(dataset.keys),
            "digest": dataset.digest,
            "classes": [{"name": name} | found for name, found in dataset.audit.counts.items()],
        },
        "scores": {split: asdict(scored) for split, scored in scores.items()},
        "intervals": asdict(found.intervals),
        "calibration": {
            **asdict(found.card.calibration),
            "before": {name: getattr(found.uncalibrated, name) for name in CALIBRATION_TITLES},
            "after": {name: getattr(scores["test"], name) for name in CALIBRATION_TITLES},
            "prediction_sets": sets and asdict(sets),
        },
        "risk_coverage": asdict(risk_coverage(labels, parity.served)),
        "shortcut": _shortcut(found),
        "overfitting": overfitting(scores["train"].accuracy, scores["val"].accuracy),
        "parity": {
            "held": not parity.faults,
            "images": parity.images,
            "tolerance": TOLERANCE,
            "tie": TIE,
            "normalization": asdict(parity.normalization),
            "comparisons": [asdict(way) for way in parity.ways],
        },
        "quantized": _quantized(found.quantized),
        "history": [asdict(line) for line in found.history],
        "environment": found.environment,
        "card": json.loads(replace(found.card, goldens=()).to_json()),
    }


def _quantized(quantized: Quantized | None) -> dict[str, object] | None:
    return asdict(quantized) | {"published": quantized.published, "least": AGREEMENT} if quantized else None


def _shortcut(found: Findings) -> dict[str, object] | None:
    baseline, model = found.dataset.audit.baseline, found.scores["test"].balanced_accuracy
    return asdict(baseline) | {"model": model, "share": baseline.share(model)} if baseline else None


def _warnings(found: Findings) -> Iterator[str]:
    """What a person must know before trusting the model, in plain sentences."""
    scores, calibration, shortcut = found.scores["test"], found.card.calibration, found.dataset.audit.baseline
    yield from audit_report.warnings(found.dataset.audit)
    share = shortcut and shortcut.share(scores.balanced_accuracy)
    if shortcut and share and share >= LARGE_SHARE:
        yield (
            "Size, format, bytes and mean colour alone, without the picture, reach a balanced accuracy of "
            f"{shortcut.best:.1%}, which is {share:.0%} of what the model gains over chance ({shortcut.chance:.1%}). "
            "Make sure that the classes were not photographed or stored in different ways."
        )
    confusion = np.array(scores.confusion)
    if len(said := np.flatnonzero(confusion.sum(0))) == 1:
        yield f"Every test image was answered with {found.card.classes[said[0]]}."
    commonest = int(confusion.sum(1).argmax())
    if scores.accuracy <= (right := confusion.sum(1)[commonest] / scores.images):
        yield f"Always answering {found.card.classes[commonest]} would be right at least as often: {right:.1%}."
    if calibration.threshold is None:
        count = len(found.dataset.splits["val"])
        what = "prediction sets" if count >= MIN_IMAGES else "a temperature and for prediction sets"
        yield f"{count} validation images are too few for {what} at a level of {calibration.level:.0%}."
    if (quantized := found.quantized) and not quantized.published:
        yield (
            f"model.int8.onnx was not published: it gives {quantized.agreement:.1%} of the {quantized.images:,} test "
            f"images the label that model.onnx gives them, less than {AGREEMENT:.0%}. model.onnx is not concerned."
        )
    training, validation = found.scores["train"].accuracy, found.scores["val"].accuracy
    if training - validation >= OVERFITTING_GAP:
        yield overfitting(training, validation)


def summary(run: Path) -> str:
    """The short table that ends a run on the console."""
    facts = json.loads((run / "report" / "report.json").read_text(encoding="utf-8"))
    rows = [f"{'':18}" + "".join(f"{split:>10}" for split in facts["scores"]) + "   95 % interval of test"]
    rows.append(f"{'images':18}" + "".join(f"{scored['images']:>10,}" for scored in facts["scores"].values()))
    for name, title in TITLES.items():
        cells = "".join(
            f"{'-' if scored[name] is None else format(scored[name], '.4f'):>10}" for scored in facts["scores"].values()
        )
        limits = facts["intervals"].get(name)
        rows.append(f"{title:18}{cells}" + (f"   {page.interval(limits)}" if limits else ""))
    parity = facts["parity"]
    worst = max(comparison["largest_difference"] for comparison in parity["comparisons"])
    ties = max(comparison.get("ties", 0) for comparison in parity["comparisons"])  # older runs have not counted them
    model = Path(facts["model"])
    served = model.parent.parent.name == "runs" and not model.is_absolute()
    return "\n".join(
        (
            "",
            *rows,
            "",
            *(f"warning: {warning}" for warning in facts["warnings"]),
            *([] if facts["overfitting"] in facts["warnings"] else [facts["overfitting"]]),
            *_baseline(facts["shortcut"]),
            f"Parity held on all {parity['images']:,} test images: pixels equal, 0 labels differ"
            f"{f' (but {ties} between equally probable ones)' if ties else ''}, "
            f"probabilities within {worst:.1e} (at most {parity['tolerance']:g}).",
            *_int8(facts["quantized"]),
            "",
            f"report  {run / 'report' / 'report.html'}",
            f"model   {model}",
            f"curves  tensorboard --logdir {run.parent}",
            f"serve   {'' if served else f'TWINLENS_MODEL={model} '}bentoml serve",
        )
    )


def _int8(quantized: dict[str, Any] | None) -> list[str]:
    if quantized is None or not quantized["published"]:
        return []  # that it was not published is one of the warnings
    return [
        f"model.int8.onnx: {quantized['agreement']:.1%} of the labels agree, accuracy "
        f"{quantized['scores']['accuracy']:.4f}; one image takes 1/{quantized['speed']:.1f} of the time, the file "
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


def class_table(scores: Scores, intervals: Intervals | None = None) -> str:
    """Recall, precision, F1 and number of images by class, in Markdown; with 95 % intervals where there are any."""
    lines = ["| class | recall | precision | F1 | images |", "|---|---:|---:|---:|---:|"]
    recalls, precisions = (intervals.recall, intervals.precision) if intervals else ({}, {})
    for row in scores.by_class:
        recall = _with_interval(row.recall, recalls.get(row.name))
        precision = _with_interval(row.precision, precisions.get(row.name))
        name = row.name.replace("|", "&#124;")
        lines.append(f"| {name} | {recall} | {precision} | {page.number(row.f1)} | {row.support:,} |")
    return "\n".join(lines)


def worst_mistakes(labels: Labels, probabilities: Probabilities, most: int) -> np.ndarray:
    """Rows of wrong answers, the most confident first."""
    wrong = np.flatnonzero(probabilities.argmax(1) != labels)
    return wrong[np.argsort(-probabilities[wrong].max(1), kind="stable")][:most]


def answers(dataset: Dataset, indices: np.ndarray, probabilities: Probabilities) -> Figure:
    """The images `indices` with their true and predicted labels; one row of probabilities an image."""
    assert len(indices) == len(probabilities)
    predicted = probabilities.argmax(1)
    titles = [
        f"{dataset.classes[dataset.labels[index]]}\n-> {dataset.classes[label]} {row[label]:.0%}"
        for index, label, row in zip(indices, predicted, probabilities, strict=True)
    ]
    return figures.gallery(dataset.images[indices], titles, list(predicted != dataset.labels[indices]))


def augmented(config: SettledConfig, dataset: Dataset) -> Figure | None:
    """The first training image of each of six classes, and six times what augmentation may make of it; None: nothing.

    Mixing images, which happens to whole batches afterwards, is not in it.
    """
    transform = augmentation.policy(config)
    if transform is None:
        return None
    train = dataset.splits["train"]
    _, first = np.unique(dataset.labels[train], return_index=True)
    originals = dataset.images[train[first[:SHEET_ROWS]]]
    rows = [
        [image] + [augmentation.apply(transform, image, config.seed, epoch, row) for epoch in range(SHEET_COLUMNS)]
        for row, image in enumerate(originals)
    ]
    return figures.sheet(np.array(rows), "original")


def mistakes(dataset: LabelledImages, indices: np.ndarray, probabilities: Probabilities) -> list[dict[str, str]]:
    """The images `indices` as a page shows them: picture, key, labels; one row of probabilities an image."""
    return [
        {
            "key": dataset.keys[index],
            "picture": page.thumbnail(dataset.original(int(index))),
            "true": dataset.classes[dataset.labels[index]],
            "predicted": dataset.classes[row.argmax()],
            "confidence": f"{row.max():.0%}",
        }
        for index, row in zip(indices, probabilities, strict=True)
    ]


def write_predictions(path: Path, dataset: LabelledImages, indices: np.ndarray, probabilities: Probabilities) -> None:
    """A line of CSV for each of the images `indices`: key, true and predicted class, every probability."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "true", "predicted", *dataset.classes])
        for index, row in zip(indices, probabilities, strict=True):
            names = dataset.keys[index], dataset.classes[dataset.labels[index]], dataset.classes[row.argmax()]
            writer.writerow([*names, *(f"{value:.6f}" for value in row)])


def _with_interval(value: float | None, limits: Interval | None) -> str:
    return page.number(value) + (f" ({page.interval(limits)})" if limits else "")


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
