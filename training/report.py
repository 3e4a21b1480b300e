"""The evaluation report: report.json for programs, report.md as a model card, report.html for people."""

import csv
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from serving.contract import TOLERANCE, ModelCard
from training import figures, page
from training.calibration import coverage
from training.config import TrainConfig
from training.data import Dataset, Labelled
from training.export import Parity
from training.intervals import bootstrap
from training.scores import Labels, Probabilities, Scores, overfitting, reliability
from training.splits import Split

MISTAKES = 24


@dataclass(frozen=True, kw_only=True)
class Epoch:
    """One line of a run's history; the training figures are means over the epoch's augmented batches."""

    epoch: int
    train_loss: float
    train_accuracy: float
    val_loss: float
    val_accuracy: float
    val_balanced_accuracy: float
    lr: float
    images_per_second: float
    best: bool

    def line(self, epochs: int) -> str:
        """For the console."""
        return (
            f"epoch {self.epoch:{len(str(epochs))}}/{epochs}  "
            f"train loss {self.train_loss:.3f} accuracy {self.train_accuracy:6.1%}  "
            f"val loss {self.val_loss:.3f} accuracy {self.val_accuracy:6.1%} "
            f"balanced {self.val_balanced_accuracy:6.1%}  "
            f"{self.images_per_second:,.0f} images/s{'  best' if self.best else ''}"
        )


@dataclass(frozen=True, kw_only=True)
class Findings:
    """All that a run found out, which the report puts into words and pictures; `uncalibrated` is of the test split."""

    config: TrainConfig
    card: ModelCard
    dataset: Dataset
    history: Sequence[Epoch]
    scores: dict[Split, Scores]
    uncalibrated: Scores
    parity: Parity


def write(found: Findings) -> None:
    """Write `report/` and `predictions.csv` into the run's folder."""
    run, dataset, served = found.config.run, found.dataset, found.parity.served
    test = dataset.splits["test"]
    labels = dataset.labels[test]
    folder = run / "report"
    (folder / "figures").mkdir(parents=True)
    drawings = {name: _curve(name, found.history) for name in ("loss", "accuracy")}
    drawings["confusion"] = figures.confusion(found.scores["test"])
    drawings["reliability"] = figures.reliability(reliability(labels, served))
    pictures = {}
    for name, figure in drawings.items():
        figure.savefig(folder / "figures" / f"{name}.png", dpi=120)
        figure.savefig(folder / "figures" / f"{name}.svg")
        pictures[name] = page.drawing(figure)

    facts = _facts(found)
    worst = worst_mistakes(labels, served, MISTAKES)
    wrong = mistakes(dataset, test[worst], served[worst])
    table = class_table(found.scores["test"])
    (folder / "report.json").write_text(json.dumps(facts, indent=1, allow_nan=False, ensure_ascii=False))
    (folder / "report.md").write_text(page.render("report.md.jinja", **facts, class_table=table))
    (folder / "report.html").write_text(page.render("report.html.jinja", **facts, pictures=pictures, mistakes=wrong))
    write_predictions(run / "predictions.csv", dataset, test, served)


def _facts(found: Findings) -> dict[str, object]:
    """What report.json holds, and what both templates are filled with."""
    dataset, scores, parity = found.dataset, found.scores, found.parity
    test = dataset.splits["test"]
    labels = dataset.labels[test]
    sets = coverage(labels, parity.served, found.card.calibration, dataset.classes)
    return {
        "run": found.config.run.name,
        "model": str(found.config.run / "model.onnx"),
        "data": {
            "name": dataset.name,
            "images": len(dataset.keys),
            "digest": dataset.digest,
            "unreadable": dataset.unreadable,
            "classes": [
                {"name": name}
                | {split: int((dataset.labels[indices] == label).sum()) for split, indices in dataset.splits.items()}
                for label, name in enumerate(dataset.classes)
            ],
        },
        "scores": {split: asdict(scored) for split, scored in scores.items()},
        "intervals": asdict(bootstrap(labels, parity.served, dataset.components[test], dataset.classes)),
        "calibration": {
            **asdict(found.card.calibration),
            "before": {name: getattr(found.uncalibrated, name) for name in page.CALIBRATION_TITLES},
            "after": {name: getattr(scores["test"], name) for name in page.CALIBRATION_TITLES},
            "prediction_sets": sets and asdict(sets),
        },
        "overfitting": overfitting(scores["train"].accuracy, scores["val"].accuracy),
        "parity": {
            "held": not parity.faults,
            "images": parity.images,
            "tolerance": TOLERANCE,
            "normalization": asdict(parity.normalization),
            "comparisons": [asdict(comparison) for comparison in parity.comparisons],
        },
        "history": [asdict(line) for line in found.history],
        "card": json.loads(replace(found.card, goldens=()).to_json()),
    }


def summary(run: Path) -> str:
    """The short table that ends a run on the console."""
    facts = json.loads((run / "report" / "report.json").read_text())
    rows = [f"{'':18}" + "".join(f"{split:>10}" for split in facts["scores"]) + "   95 % interval of test"]
    rows.append(f"{'images':18}" + "".join(f"{scored['images']:>10,}" for scored in facts["scores"].values()))
    for name, title in page.TITLES.items():
        cells = "".join(
            f"{'-' if scored[name] is None else format(scored[name], '.4f'):>10}" for scored in facts["scores"].values()
        )
        limits = facts["intervals"].get(name)
        rows.append(f"{title:18}{cells}" + (f"   {page.interval(limits)}" if limits else ""))
    parity = facts["parity"]
    worst = max(comparison["largest_difference"] for comparison in parity["comparisons"])
    model = Path(facts["model"])
    served = model.parent.parent.name == "runs" and not model.is_absolute()
    return "\n".join(
        (
            "",
            *rows,
            "",
            facts["overfitting"],
            f"Parity held on all {parity['images']:,} test images: pixels equal, 0 labels differ, "
            f"probabilities within {worst:.1e} (at most {parity['tolerance']:g}).",
            "",
            f"report  {run / 'report' / 'report.html'}",
            f"model   {model}",
            f"curves  tensorboard --logdir {run.parent}",
            f"serve   {'' if served else f'TWINLENS_MODEL={model} '}bentoml serve",
        )
    )


def class_table(scores: Scores) -> str:
    """Precision, recall, F1 and support by class, in Markdown."""
    lines = ["| class | precision | recall | F1 | support |", "|---|---:|---:|---:|---:|"]
    for scored in scores.by_class:
        cells = " | ".join(page.number(value) for value in (scored.precision, scored.recall, scored.f1))
        lines.append(f"| {scored.name.replace('|', '&#124;')} | {cells} | {scored.support:,} |")
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


def mistakes(dataset: Labelled, indices: np.ndarray, probabilities: Probabilities) -> list[dict[str, str]]:
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


def write_predictions(path: Path, dataset: Labelled, indices: np.ndarray, probabilities: Probabilities) -> None:
    """A line of CSV for each of the images `indices`: key, true and predicted class, every probability."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "true", "predicted", *dataset.classes])
        for index, row in zip(indices, probabilities, strict=True):
            names = dataset.keys[index], dataset.classes[dataset.labels[index]], dataset.classes[row.argmax()]
            writer.writerow([*names, *(f"{value:.6f}" for value in row)])


def _curve(name: str, history: Sequence[Epoch]) -> Figure:
    return figures.curve(
        name,
        [line.epoch for line in history],
        [getattr(line, f"train_{name}") for line in history],
        [getattr(line, f"val_{name}") for line in history],
        max(line.epoch for line in history if line.best),
    )
