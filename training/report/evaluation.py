"""What an evaluation leaves: evaluation.json for programs, evaluation.html for people, predictions.csv for both."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from jaxtyping import Int64

from serving.contract.model import Classifier
from training.data.dataset import LabelledImages
from training.metrics.bootstrap import bootstrap
from training.metrics.calibration import coverage
from training.metrics.classification import TITLES, Probabilities, Scores, reliability, score
from training.metrics.comparison import Comparison, compare
from training.report import figures
from training.report import html as page
from training.report import run as report


@dataclass(frozen=True, kw_only=True)
class Answered:
    """A model and its answers: a row an image, columns as the images' classes."""

    classifier: Classifier
    probabilities: Probabilities


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """The answers of one model, or of two to compare, to the images `indices`."""

    images: LabelledImages
    split: str
    reason: str
    """Why these images."""
    indices: Int64[np.ndarray, " _"]
    warnings: Sequence[str]
    models: Sequence[Answered]


def write(found: Evaluation, folder: Path) -> None:
    """Write all three files into `folder`; predictions.csv holds the answers of the first model."""
    images, indices, probabilities = found.images, found.indices, found.models[0].probabilities
    labels = images.labels[indices]
    scores = [score(labels, model.probabilities, images.classes) for model in found.models]
    compared = None
    if len(found.models) == 2:
        a, b = (model.probabilities for model in found.models)
        compared = compare(labels, (a, b), (scores[0], scores[1]), images.components[indices])
    facts = _facts(found, scores, compared)
    pictures = {
        "confusion": page.drawing(figures.confusion(scores[0])),
        "reliability": page.drawing(figures.reliability(reliability(labels, probabilities), found.split)),
    }
    worst = report.worst_mistakes(labels, probabilities, report.MISTAKES)
    disputed = indices[compared.disagreements[: report.MISTAKES]] if compared else []
    text = page.render(
        "evaluation.html.jinja",
        **facts,
        pictures=pictures,
        mistakes=report.mistakes(images, indices[worst], probabilities[worst]),
        disputed=[page.thumbnail(images.original(int(index))) for index in disputed],
    )
    (folder / "evaluation.json").write_text(
        json.dumps(facts, indent=1, allow_nan=False, ensure_ascii=False), encoding="utf-8"
    )
    (folder / "evaluation.html").write_text(text, encoding="utf-8")
    report.write_predictions(folder / "predictions.csv", images, indices, probabilities)


def summary(folder: Path) -> str:
    """The short table that ends an evaluation on the console."""
    facts = json.loads((folder / "evaluation.json").read_text(encoding="utf-8"))
    comparison = facts["comparison"]
    columns, limits = {"score": facts["scores"]}, facts["intervals"]
    if comparison:
        differences = {name: difference["value"] for name, difference in comparison["differences"].items()}
        columns = {"A": facts["scores"], "B": comparison["scores"], "B - A": differences}
        limits = {name: difference["interval"] for name, difference in comparison["differences"].items()}
    rows = [
        f"{'':18}{''.join(f'{heading:>10}' for heading in columns)}   95 % interval{' of B - A' if comparison else ''}"
    ]
    for name, title in TITLES.items():
        cells = "".join(
            "-".rjust(10) if column[name] is None else f"{column[name]:10.4f}" for column in columns.values()
        )
        rows.append(f"{title:18}{cells}" + (f"   {page.interval(limits[name])}" if limits.get(name) else ""))
    return "\n".join(
        (
            "",
            *rows,
            "",
            *([comparison["verdict"], comparison["tally"], ""] if comparison else []),
            f"page         {folder / 'evaluation.html'}",
            f"scores       {folder / 'evaluation.json'}",
            f"predictions  {folder / 'predictions.csv'}",
        )
    )


def _facts(found: Evaluation, scores: Sequence[Scores], compared: Comparison | None) -> dict[str, object]:
    """What evaluation.json holds, and what the page is filled with."""
    images, indices = found.images, found.indices
    return {
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "data": {
            "name": images.name,
            "images": len(images.keys),
            "digest": images.digest,
            "unreadable": images.unreadable,
            "split": found.split,
            "reason": found.reason,
            "components": len(np.unique(images.components[indices])),
        },
        "warnings": found.warnings,
        **_judged(found, found.models[0], scores[0]),
        "comparison": compared
        and {
            **_judged(found, found.models[1], scores[1]),
            **asdict(compared),
            "verdict": compared.verdict,
            "tally": compared.tally,
            "disagreements": [_disagreement(found, row) for row in compared.disagreements.tolist()],
        },
    }


def _judged(found: Evaluation, model: Answered, scores: Scores) -> dict[str, object]:
    """All that is said of one model."""
    classifier, images, indices = model.classifier, found.images, found.indices
    card, labels = classifier.card, images.labels[indices]
    sets = coverage(labels, model.probabilities, card.calibration, images.classes)
    return {
        "model": {
            "name": card.name,
            "version": card.version,
            "file": str(classifier.path),
            "digest": classifier.digest,
            "provider": classifier.provider,
            "trained_on": card.provenance.data_digest,
            **asdict(card.preprocessing),
        },
        "scores": asdict(scores),
        "intervals": asdict(bootstrap(labels, model.probabilities, images.components[indices], images.classes)),
        "calibration": {**asdict(card.calibration), "prediction_sets": sets and asdict(sets)},
    }


def _disagreement(found: Evaluation, row: int) -> dict[str, object]:
    index = found.indices[row]
    answers = [model.probabilities[row] for model in found.models]
    return {
        "path": found.images.keys[index],
        "true": found.images.classes[found.images.labels[index]],
        **{
            letter: {"label": found.images.classes[answer.argmax()], "confidence": round(float(answer.max()), 6)}
            for letter, answer in zip("AB", answers, strict=True)
        },
    }
