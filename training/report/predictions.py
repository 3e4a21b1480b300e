"""Predictions as a report shows them: as pictures of mistakes, as a table by class, as predictions.csv."""

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Int64
from matplotlib.figure import Figure

from serving.contract.card.model_card import ModelCard
from serving.contract.model import Answers
from training.data.dataset import Dataset, LabelledImages
from training.metrics.classification import Labels, Probabilities, Scores
from training.metrics.intervals.bootstrap import Intervals
from training.metrics.intervals.proportions import Interval
from training.report import figures, html
from training.report.names import displayed

MISTAKES = 24
"""Mistakes that a page shows."""
COLUMNS = ("path", "true", "predicted", "component")
"""First columns of predictions.csv. Images of one component share a group or show one picture."""
LEAKS = "leaks"
"""The next column, where images leak: whether an image's picture or group is in training or validation, too."""


@dataclass(frozen=True, kw_only=True)
class RecordedPredictions:
    """The content of a predictions.csv, an entry for each image."""

    keys: list[str]
    labels: Labels
    components: Int64[np.ndarray, " images"] | None
    """None in files of older versions."""
    leaks: Bool[np.ndarray, " images"]
    """Whether picture or group of an image is in training or validation, too."""
    probabilities: Probabilities
    """Exact; of six decimals in files of older versions."""

    def of(self, keys: Sequence[str]) -> Probabilities | None:
        """The probabilities of these images; None unless all are in the file."""
        rows = {key: row for row, key in enumerate(self.keys)}
        if any(key not in rows for key in keys):
            return None
        selected: Probabilities = self.probabilities[[rows[key] for key in keys]]
        return selected


def worst_mistakes(labels: Labels, probabilities: Probabilities, most: int) -> np.ndarray:
    """Rows of at most `most` wrong predictions, the most confident first."""
    wrong = np.flatnonzero(probabilities.argmax(1) != labels)
    return wrong[np.argsort(-probabilities[wrong].max(1), kind="stable")][:most]


def mistakes(dataset: LabelledImages, indices: np.ndarray, probabilities: Probabilities) -> list[dict[str, str]]:
    """The images `indices` as a page shows them: key, picture, labels; `probabilities` has a row for each."""
    return [
        {
            "key": dataset.keys[index],
            "picture": html.thumbnail(dataset.original(int(index))),
            "true": dataset.classes[dataset.labels[index]],
            "predicted": dataset.classes[row.argmax()],
            "confidence": f"{row.max():.0%}",
        }
        for index, row in zip(indices, probabilities, strict=True)
    ]


def write_predictions(
    path: Path, dataset: LabelledImages, indices: np.ndarray, answers: Answers, card: ModelCard | None
) -> None:
    """Write a line of CSV for each of the images `indices`.

    Key, true and predicted class, component, where images of the test split leak which ones, what the card decides by
    the answers, as the service does, and the probabilities, whose columns are in the order of the dataset's classes.
    """
    columns = {} if card is None else _leaks(dataset, indices, card) | _decided(answers, card, dataset.classes)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow([*COLUMNS, *columns, *dataset.classes])
        for place, (index, row) in enumerate(zip(indices, answers.probabilities, strict=True)):
            names = dataset.keys[index], dataset.classes[dataset.labels[index]], dataset.classes[row.argmax()]
            decided = [cells[place] for cells in columns.values()]
            writer.writerow(
                [*names, dataset.components[index], *decided, *(str(np.float32(value)) for value in row)]
            )  # exact


def _leaks(dataset: LabelledImages, indices: np.ndarray, card: ModelCard) -> dict[str, list[str]]:
    """The column `LEAKS`; none where the scores are those of folds, or where the model learned from other data."""
    leaks = ~np.isin(indices, dataset.division.leak_free_test)
    learned = dataset.digest == card.provenance.data_digest and card.statement is None
    of_test = np.array_equal(indices, dataset.splits["test"])
    return {LEAKS: _booleans(leaks)} if leaks.any() and of_test and learned else {}


def _decided(answers: Answers, card: ModelCard, classes: Sequence[str]) -> dict[str, list[str]]:
    """By column, what the card decides on each image."""
    probabilities, novelty = answers.probabilities, answers.novelty
    columns: dict[str, list[str]] = {}
    if card.costs is not None:
        least = card.least_cost(probabilities[:, [classes.index(name) for name in card.classes]])
        columns["least_cost"] = [card.costs.actions[action] for action in least]
    if card.familiarity is not None and novelty is not None:
        columns["unfamiliar"] = _booleans(card.familiarity.unfamiliar(novelty))
        columns["novelty"] = [f"{value:.6f}" for value in novelty]
    for point in card.operating_points:
        decisions = point.decides(probabilities[:, classes.index(point.label)])
        columns[f"decision_{point.label}"] = _booleans(decisions)
    return columns


def _booleans(values: Bool[np.ndarray, " images"]) -> list[str]:
    return [str(value).lower() for value in values.tolist()]


def read_predictions(path: Path, classes: tuple[str, ...]) -> RecordedPredictions | None:
    """Read what `write_predictions` has written, columns in the order of `classes`.

    None where there is no such file, or one of other classes. Raises OSError.
    """
    if not path.is_file():
        return None
    with path.open(newline="", encoding="utf-8") as file:
        header, *rows = csv.reader(file)
    first = len(header) - len(classes)  # a class may have the name of a column
    if sorted(header[first:]) != sorted(classes) or not rows:
        return None
    order = [header.index(name, first) for name in classes]
    return RecordedPredictions(
        keys=[row[0] for row in rows],
        labels=np.array([classes.index(row[1]) for row in rows], np.int64),
        components=np.array([int(row[3]) for row in rows], np.int64) if first >= len(COLUMNS) else None,
        leaks=np.array([LEAKS in header[:first] and row[header.index(LEAKS)] == "true" for row in rows]),
        probabilities=np.array([[float(row[column]) for column in order] for row in rows], np.float32),
    )


def keys_in(path: Path) -> set[str]:
    """Names of the images in a predictions.csv, of whatever classes; none where there is no such file."""
    try:
        with path.open(newline="", encoding="utf-8") as file:
            return {row[COLUMNS[0]] for row in csv.DictReader(file) if COLUMNS[0] in row}
    except FileNotFoundError:
        return set()


def class_table(scores: Scores, intervals: Intervals | None = None) -> str:
    """Recall, precision, F1 and number of images by class, as a table in Markdown; with 95 % intervals if given."""
    lines = ["| class | recall | precision | F1 | images |", "|---|---:|---:|---:|---:|"]
    recalls, precisions = (intervals.recall, intervals.precision) if intervals else ({}, {})
    for row in scores.by_class:
        recall = _with_interval(row.recall, recalls.get(row.name))
        precision = _with_interval(row.precision, precisions.get(row.name))
        lines.append(f"| {html.name(row.name)} | {recall} | {precision} | {html.number(row.f1)} | {row.support:,} |")
    return "\n".join(lines)


def _with_interval(value: float | None, limits: Interval | None) -> str:
    return html.number(value) + (f" ({html.interval(limits)})" if limits else "")


def gallery(dataset: Dataset, indices: np.ndarray, probabilities: Probabilities) -> Figure:
    """The images `indices` with true and predicted labels; `probabilities` has a row for each."""
    assert len(indices) == len(probabilities)
    predicted = probabilities.argmax(1)
    names = displayed(dataset.classes)
    titles = [
        f"{names[dataset.labels[index]]}\n-> {names[label]} {row[label]:.0%}"
        for index, label, row in zip(indices, predicted, probabilities, strict=True)
    ]
    return figures.gallery(dataset.images[indices], titles, list(predicted != dataset.labels[indices]))
