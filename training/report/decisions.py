"""Decisions for one class against all others, as a report shows them: operating points and curves by class."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from serving.contract.card.decisions import OperatingPoint
from serving.contract.card.model_card import ModelCard
from training.metrics import costs, operating_points
from training.metrics.classification import ScoredImages
from training.metrics.curves import SHARES, ClassCurves, class_curves
from training.metrics.operating_points import FEW, MeasuredPoint
from training.report import figures, html

CURVES_SHOWN = 24


@dataclass(frozen=True, kw_only=True)
class Decisions:
    """What decisions for one class are worth on scored images."""

    points: list[MeasuredPoint]
    curves: list[ClassCurves]
    """Curves of the classes with an operating point and of the first others, 24 at most."""
    left_out: int
    """Classes whose curves are not shown."""


def measure_decisions(
    points: Sequence[OperatingPoint], classes: tuple[str, ...], scored: ScoredImages, validation: ScoredImages | None
) -> Decisions:
    """Measure operating points and curves; `validation` are the images that chose the thresholds, where they are known.

    A class that no image or every image has makes no curve.
    """
    known = [name for label, name in enumerate(classes) if 0 < (scored.labels == label).sum() < len(scored.labels)]
    ordered = sorted(known, key=lambda name: name not in {point.label for point in points})
    shown = np.sort([classes.index(name) for name in ordered[:CURVES_SHOWN]]).tolist()
    return Decisions(
        points=[operating_points.measure(point, classes, scored, validation) for point in points],
        curves=class_curves(scored, classes, shown),
        left_out=len(known) - len(shown),
    )


def decision_facts(decisions: Decisions) -> dict[str, Any]:
    """The part of report.json and evaluation.json, from which the pages are filled."""
    return {
        "points": [asdict(measured) | {"cost": measured.cost} for measured in decisions.points],
        "curves": {
            "shares": SHARES.round(2).tolist(),
            "classes": [asdict(curves) for curves in decisions.curves],
            "left_out": decisions.left_out,
        },
    }


def cost_facts(card: ModelCard, scored: ScoredImages) -> dict[str, Any] | None:
    """The part on costs of report.json and evaluation.json; None without a cost matrix."""
    if card.costs is None:
        return None
    measured = costs.measure(card.costs, card.classes, scored, card.least_cost(scored.probabilities))
    return asdict(measured) | {"sentence": measured.sentence}


def curve_pictures(decisions: Decisions) -> list[dict[str, str]]:
    """By class with curves, both as drawings; the dot is its operating point."""
    measured = {each.point.label: each for each in decisions.points}
    return [
        {
            "roc": html.drawing(figures.roc(curves, measured.get(curves.name))),
            "precision_recall": html.drawing(figures.precision_recall(curves, measured.get(curves.name))),
        }
        for curves in decisions.curves
    ]


def decision_warnings(decisions: Decisions, targets: Sequence[str], images: str) -> Iterator[str]:
    """Sentences on demands that are not met on `images`, and on thresholds that few images chose.

    `targets` is what --operate demands; empty where that is not known.
    """
    by_label = {measured.point.label: measured for measured in decisions.points}
    for text in targets:
        if operating_points.parse(text).label not in by_label:
            yield f"No threshold reaches `--operate {text}` on validation images: the model has no such decision."
    for label, measured in by_label.items():
        point = measured.point
        chosen = measured.validation and measured.validation.of(point.score)
        if chosen and chosen.interval and chosen.images < FEW:
            yield (
                f"The threshold of {label} was chosen on {chosen.images} validation images for its {point.score}: "
                f"{point.target:g} is wanted, and the 95 % interval there is {html.interval(chosen.interval)}."
            )
        if measured.misses_target:
            rate = measured.rates.of(point.score)
            yield (
                f"The {point.score} of the decision for {label} is {html.number(rate.value)} "
                f"({html.interval(rate.interval)}) on {images}, below the {point.target:g} that its threshold reaches "
                "on validation images."
            )


def decision_lines(facts: dict[str, Any]) -> list[str]:
    """The operating points in a line each, for the console."""
    lines = []
    for measured in facts["points"]:
        point, rates = measured["point"], measured["rates"]
        worth = [
            f"{name} {html.number(rates[name]['value'])} ({html.interval(rates[name]['interval'])})"
            for name in ("sensitivity", "specificity")
        ]
        lines.append(f"{point['label']}: yes from {point['threshold']:g}, {', '.join(worth)}")
    return lines
