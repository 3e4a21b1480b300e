"""The results of an evaluation: evaluation.json for programs, evaluation.html for people, predictions.csv for both."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from serving.contract.card.decisions import Costs
from serving.contract.card.model_card import ModelCard
from serving.contract.model import Answers, Classifier
from training.data.selection import Selection
from training.engine.runs import PREDICTIONS
from training.metrics.calibration import Sets, coverage, coverage_warnings, held_for
from training.metrics.classification import TITLES, Probabilities, ScoredImages, Scores, reliability, score
from training.metrics.comparison import Comparison, compare
from training.metrics.decision_comparison import DecisionComparison, compare_decisions
from training.metrics.familiarity.novelty import Novelty, familiar_images, novelty_facts, novelty_warnings
from training.metrics.intervals.bootstrap import bootstrap
from training.metrics.slices import Slices
from training.metrics.subgroups import columns_by_score, subgroup_facts, subgroup_warnings
from training.report import figures, html
from training.report.decisions import (
    Decisions,
    cost_facts,
    curve_pictures,
    decision_facts,
    decision_lines,
    decision_warnings,
    measure_decisions,
)
from training.report.looks import EarlierLooks
from training.report.predictions import MISTAKES, mistakes, worst_mistakes, write_predictions


@dataclass(frozen=True, kw_only=True)
class ModelPredictions:
    """A model and its probabilities: a row for each image, columns in the order of the images' classes."""

    classifier: Classifier
    probabilities: Probabilities
    novelty: Novelty | None = None
    """None where the model has none."""


@dataclass(frozen=True, kw_only=True)
class EvaluationReport:
    """The predictions of one model, or of two to compare, for the images of `selection`."""

    selection: Selection
    warnings: Sequence[str]
    models: Sequence[ModelPredictions]
    costs: Costs | None = None
    """Matrix of --costs; None: that of the first model's card."""
    slices: Slices = field(default_factory=Slices)
    """The columns by which scores are compared, of the first model."""
    looks: EarlierLooks | None
    """At these test images, before this one; None: they are no test images."""

    @property
    def card(self) -> ModelCard:
        """Card of the first model, with the costs by which it is judged."""
        card = self.models[0].classifier.card
        return replace(card, costs=self.costs or card.costs)

    @property
    def scored(self) -> ScoredImages:
        """What the first model answers."""
        images, indices = self.selection.images, self.selection.indices
        return ScoredImages(
            labels=images.labels[indices],
            probabilities=self.models[0].probabilities,
            components=images.components[indices],
        )


def write_evaluation(evaluation: EvaluationReport, folder: Path) -> None:
    """Write all three files into `folder`; predictions.csv is of the first model."""
    images, indices = evaluation.selection.images, evaluation.selection.indices
    probabilities = evaluation.models[0].probabilities
    labels = images.labels[indices]
    scores = [score(labels, model.probabilities, images.classes) for model in evaluation.models]
    compared = None
    if len(evaluation.models) == 2:
        a, b = (model.probabilities for model in evaluation.models)
        compared = compare(labels, (a, b), (scores[0], scores[1]), images.components[indices])
    decisions = _decisions(evaluation)
    facts = _facts(evaluation, scores, compared, decisions)
    pictures = {
        "confusion": html.drawing(figures.confusion(scores[0])),
        "reliability": html.drawing(
            figures.reliability(reliability(labels, probabilities), evaluation.selection.split)
        ),
    }
    worst = worst_mistakes(labels, probabilities, MISTAKES)
    disputed = indices[compared.disagreements[:MISTAKES]] if compared else []
    text = html.render(
        "evaluation.html.jinja",
        **facts,
        pictures=pictures,
        curve_pictures=curve_pictures(decisions),
        decided_on="these images",
        held_for=held_for(evaluation.models[0].classifier.card.calibration, images.classes),
        mistakes=mistakes(images, indices[worst], probabilities[worst]),
        disputed=[html.thumbnail(images.original(int(index))) for index in disputed],
    )
    (folder / "evaluation.json").write_text(
        json.dumps(facts, indent=1, allow_nan=False, ensure_ascii=False), encoding="utf-8"
    )
    (folder / "evaluation.html").write_text(text, encoding="utf-8")
    write_predictions(
        folder / PREDICTIONS,
        images,
        indices,
        Answers(probabilities, evaluation.models[0].novelty),
        evaluation.card,
    )


def evaluation_summary(folder: Path) -> str:
    """The table and lines that an evaluation prints at its end."""
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
        rows.append(f"{title:18}{cells}" + (f"   {html.interval(limits[name])}" if limits.get(name) else ""))
    return "\n".join(
        (
            "",
            *rows,
            "",
            *(f"warning: {finding}" for finding in facts["findings"]),
            *([*decisions, ""] if (decisions := decision_lines(facts["decisions"])) else []),
            *([facts["costs"]["sentence"], ""] if facts["costs"] else []),
            *html.novelty_lines(facts["unknown"], "images"),
            *([facts["test_looks"]["sentence"], ""] if facts["test_looks"] else []),
            *([comparison["verdict"], comparison["tally"], ""] if comparison else []),
            *([*sentences, ""] if (sentences := _sentences(comparison)) else []),
            f"page         {folder / 'evaluation.html'}",
            f"scores       {folder / 'evaluation.json'}",
            f"predictions  {folder / PREDICTIONS}",
        )
    )


def _sentences(comparison: dict[str, Any] | None) -> list[str]:
    return [each["sentence"] for each in comparison["decisions"]] if comparison else []


def _decisions(evaluation: EvaluationReport) -> Decisions:
    """Decisions of the first model; what its thresholds were chosen on is not at hand."""
    points = evaluation.models[0].classifier.card.operating_points
    return measure_decisions(points, evaluation.selection.images.classes, evaluation.scored, None)


def _compared_decisions(evaluation: EvaluationReport) -> list[DecisionComparison]:
    """Decisions of both models, for the classes that both decide for."""
    a, b = evaluation.models
    points = a.classifier.card.operating_points, b.classifier.card.operating_points
    scored, answers = evaluation.scored, (a.probabilities, b.probabilities)
    return compare_decisions(points, answers, evaluation.selection.images.classes, scored.labels, scored.components)


def _facts(
    evaluation: EvaluationReport, scores: Sequence[Scores], compared: Comparison | None, decisions: Decisions
) -> dict[str, object]:
    """The content of evaluation.json, from which the page is filled too."""
    images, indices = evaluation.selection.images, evaluation.selection.indices
    sets, card = _sets(evaluation.models[0], images.classes), evaluation.models[0].classifier.card
    familiar = familiar_images(card, evaluation.models[0].novelty)
    unknown = novelty_facts(
        card.familiarity,
        evaluation.models[0].novelty,
        evaluation.scored.components,
        blank={},
    )
    columns = columns_by_score(evaluation.slices.columns, indices, evaluation.scored, sets)
    return {
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "data": {
            "name": images.name,
            "images": len(images.keys),
            "digest": images.digest,
            "unreadable": images.unreadable,
            "split": evaluation.selection.split,
            "reason": evaluation.selection.reason,
            "components": len(np.unique(images.components[indices])),
        },
        "test_looks": evaluation.looks and evaluation.looks.facts(),
        "warnings": evaluation.warnings,
        "findings": [
            *decision_warnings(decisions, (), "these images"),
            *coverage_warnings(evaluation.scored, sets, card.calibration.level, familiar, "images"),
            *subgroup_warnings(columns),
            *novelty_warnings(unknown, "images"),
        ],
        "unknown": unknown,
        "decisions": decision_facts(decisions),
        "costs": cost_facts(evaluation.card, evaluation.scored),
        "subgroups": subgroup_facts(columns, evaluation.slices.left_out),
        **_model_facts(evaluation, evaluation.models[0], scores[0]),
        "comparison": compared
        and {
            **_model_facts(evaluation, evaluation.models[1], scores[1]),
            **asdict(compared),
            "verdict": _verdict(evaluation, compared),
            "tally": compared.tally,
            "decisions": [asdict(each) | {"sentence": each.sentence} for each in _compared_decisions(evaluation)],
            "disagreements": [_disagreement(evaluation, row) for row in compared.disagreements.tolist()],
        },
    }


def _verdict(evaluation: EvaluationReport, compared: Comparison) -> str:
    """Which model is better, in plain sentences; nothing is compared where both have the same weights."""
    versions = {model.classifier.card.version for model in evaluation.models}
    return compared.verdict if len(versions) > 1 else f"Both files hold the same weights, version {min(versions)}."


def _model_facts(evaluation: EvaluationReport, model: ModelPredictions, scores: Scores) -> dict[str, object]:
    """The facts of one model."""
    classifier = model.classifier
    images, indices = evaluation.selection.images, evaluation.selection.indices
    card, labels = classifier.card, images.labels[indices]
    familiar = familiar_images(card, model.novelty)
    covered = coverage(labels, _sets(model, images.classes), card.calibration.level, images.classes, familiar)
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
        "calibration": {**asdict(card.calibration), "prediction_sets": covered and asdict(covered)},
    }


def _sets(model: ModelPredictions, classes: tuple[str, ...]) -> Sets | None:
    """The prediction sets that the service would give, columns in the order of `classes`."""
    card = model.classifier.card
    columns = [classes.index(name) for name in card.classes]
    sets = card.prediction_sets(model.probabilities[:, columns], model.novelty)
    return None if sets is None else sets[:, np.argsort(columns)]


def _disagreement(evaluation: EvaluationReport, row: int) -> dict[str, object]:
    images, index = evaluation.selection.images, evaluation.selection.indices[row]
    classes = images.classes
    predicted = zip("AB", (model.probabilities[row] for model in evaluation.models), strict=True)
    return {
        "path": images.keys[index],
        "true": classes[images.labels[index]],
        **{
            letter: {"label": classes[probabilities.argmax()], "confidence": round(float(probabilities.max()), 6)}
            for letter, probabilities in predicted
        },
    }
