"""The results of `python -m training robustness`: robustness.json for programs, robustness.html for people."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64

from serving.contract.card.model_card import ModelCard
from training.data.dataset import LabelledImages
from training.metrics.classification import Probabilities, score
from training.metrics.intervals.bootstrap import balanced_accuracy_difference, balanced_accuracy_interval, bootstrap
from training.metrics.intervals.proportions import Interval
from training.report import figures, html
from training.robustness.changes import DRIFTS, PROBES, Change
from training.robustness.decisive import WithoutRegions
from training.robustness.drift_limits import Effect, Step, drift_limits, false_alarms, setting, unnoticed

BORDER = "border only"
DECISIVE, OTHERS = "without what decides", "without as much elsewhere"
EXAMPLES = 3
"""Images that the page shows changed, at most."""


@dataclass(frozen=True, kw_only=True)
class AnswersUnderChange:
    """The answers to all images under one change of one strength."""

    change: str
    strength: float
    probabilities: Probabilities
    stability: dict[str, float]
    """`drift_limits.distances` of the changed images."""


@dataclass(frozen=True, kw_only=True)
class RobustnessReport:
    """A model's answers to the images `indices` as they are and changed."""

    model: Path
    card: ModelCard
    images: LabelledImages
    split: str
    indices: Int64[np.ndarray, " _"]
    plain: Probabilities
    answers: Sequence[AnswersUnderChange]
    without: WithoutRegions
    examples: Sequence[int]
    """Images that the page shows changed."""
    margin: float
    seed: int
    """Of what the changes draw."""
    warnings: Sequence[str]
    """On the images, as sentences."""


@dataclass(frozen=True, kw_only=True)
class Drop:
    """Balanced accuracy under a change, and by how much it differs from that on unchanged images, paired."""

    change: str
    strength: float
    value: float
    difference: float
    interval: Interval

    def effect(self, margin: float) -> Effect:
        """Harmful, where the loss exceeds the margin and is decided: its 95 % interval excludes 0.

        Harmless, where the interval excludes a loss above the margin; else the images are too few to decide.
        """
        if self.difference < -margin and self.interval[1] < 0:
            return "harmful"
        return "harmless" if self.interval[0] >= -margin else "undecided"


def write_robustness(report: RobustnessReport, folder: Path) -> None:
    """Write both files into `folder`."""
    facts = _facts(report)
    drops = facts["drops"]
    drifts = {
        name: [(drop["strength"], drop["value"], drop["interval"]) for drop in drops if drop["change"] == name]
        for name in (change.name for change in DRIFTS)
    }
    text = html.render(
        "robustness.html.jinja",
        **facts,
        picture=html.drawing(figures.drifts(facts["value"], drifts)),
        examples=[*(_example(report, change) for change in (*DRIFTS, *PROBES)), _masked(report)],
    )
    (folder / "robustness.json").write_text(json.dumps(facts, indent=1, ensure_ascii=False), encoding="utf-8")
    (folder / "robustness.html").write_text(text, encoding="utf-8")


def robustness_summary(folder: Path) -> str:
    """The lines that the command prints at its end."""
    facts = json.loads((folder / "robustness.json").read_text(encoding="utf-8"))
    width = max(len(row["change"]) for row in (*facts["limits"], *facts["probes"]))
    lines = ["", f"balanced accuracy {facts['value']:.3f}, {html.interval(facts['interval'])}", ""]
    lines += [f"{limit['change']:{width}}  {limit['sentence']}" for limit in facts["limits"]]
    lines += ["", *(f"{probe['change']:{width}}  {probe['sentence']}" for probe in facts["probes"])]
    drift = facts["drift"]
    lines += ["", facts["decisive"], "", drift["sentence"], *([drift["setting"]] if drift["setting"] else [])]
    return "\n".join([*lines, "", *facts["warnings"], f"report  {folder / 'robustness.html'}"])


def _facts(report: RobustnessReport) -> dict[str, Any]:
    """The content of robustness.json, from which the page is filled too."""
    labels = report.images.labels[report.indices]
    components = report.images.components[report.indices]
    classes = report.images.classes
    scores = score(labels, report.plain, classes)

    def drop(change: str, strength: float, probabilities: Probabilities) -> Drop:
        value = score(labels, probabilities, classes).balanced_accuracy
        return Drop(
            change=change,
            strength=strength,
            value=value,
            difference=value - scores.balanced_accuracy,
            interval=balanced_accuracy_difference(labels, report.plain, probabilities, components),
        )

    drops = [drop(each.change, each.strength, each.probabilities) for each in report.answers]
    steps = [
        Step(change=each.change, effect=paired.effect(report.margin), stability=each.stability)
        for each, paired in zip(report.answers, drops, strict=True)
        if each.change in {change.name for change in DRIFTS}
    ]
    decisive, others = drop(DECISIVE, 1, report.without.decisive), drop(OTHERS, 1, report.without.others)
    drops += [decisive, others]
    chance = 1 / len(np.unique(labels))
    border = next(drop for drop in drops if drop.change == BORDER)
    [at_border] = (each.probabilities for each in report.answers if each.change == BORDER)
    least = balanced_accuracy_interval(labels, at_border, components)[0]
    return {
        "name": report.card.name,
        "version": report.card.version,
        "model": str(report.model),
        "data": report.images.name,
        "split": report.split,
        "images": len(report.indices),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "margin": report.margin,
        "value": scores.balanced_accuracy,
        "interval": bootstrap(labels, report.plain, components, classes).balanced_accuracy,
        "chance": chance,
        "drops": [asdict(drop) for drop in drops],
        "limits": [
            {"change": change.name, "unit": change.unit, **limit(change, drops, report.margin)} for change in DRIFTS
        ],
        "probes": [
            {
                "change": drop.change,
                "sentence": f"{drop.value:.3f} ({drop.difference:+.3f}, {html.interval(drop.interval)})",
            }
            for drop in drops
            if drop.change in {*(probe.name for probe in PROBES), DECISIVE, OTHERS}
        ],
        "decisive": _decisive(decisive, others, report.margin),
        "drift": _drift(report.card.version, steps),
        "warnings": [*report.warnings, *shortcut((border.value, least), scores.balanced_accuracy, chance)],
    }


def _decisive(decisive: Drop, others: Drop, margin: float) -> str:
    """What an image without its decisive quarter is worth, as a sentence."""
    sentence = (
        "Without the quarter of each image on which its answer depends the most, balanced accuracy is "
        f"{decisive.value:.3f} ({decisive.difference:+.3f}); without as large a part elsewhere, {others.value:.3f}."
    )
    if decisive.interval[1] < 0:
        return sentence
    if decisive.effect(margin) == "undecided":
        return f"{sentence} The images are too few to say whether a quarter decides."
    return f"{sentence} No quarter decides: the answers stand on what is all over the image, such as colour or light."


def _drift(version: str, steps: Sequence[Step]) -> dict[str, Any]:
    """The limits of the service's drift alert that follow, and what the alert cannot see."""
    limits = drift_limits(steps)
    if not limits:
        sentence = "No limits of the drift alert follow: the card has no reference, or the images are too few for it."
        return {"limits": {}, "unnoticed": [], "false_alarms": [], "setting": "", "sentence": sentence}
    missed = unnoticed(steps, limits)
    alarms = false_alarms(steps, limits)
    parts = ["With these limits, the service's drift alert notices drift from where it does harm."]
    if missed:
        parts = [f"The service's drift alert cannot notice these changes where they do harm: {', '.join(missed)}."]
    if alarms:
        parts.append(f"It also fires for harmless strengths of these: {', '.join(alarms)}.")
    return {
        "limits": limits,
        "unnoticed": missed,
        "false_alarms": alarms,
        "setting": f"TWINLENS_DRIFT_LIMITS={setting(version, limits)}",
        "sentence": " ".join(parts),
    }


def shortcut(border: tuple[float, float], value: float, chance: float) -> list[str]:
    """A sentence where the model is more than half as good above chance without the object as with it.

    `border` is the score without the object and the lower limit of its 95 % interval, which must be above chance, too.
    """
    without, least = border
    if value <= chance or without - chance <= (value - chance) / 2 or least <= chance:
        return []
    return [
        f"With the centre of each image hidden, balanced accuracy is still {without:.3f} (chance {chance:.3f}): "
        "something at the border may decide, not the object. Look for marks, frames or lighting that differ by class."
    ]


def limit(change: Change, drops: Sequence[Drop], margin: float) -> dict[str, Any]:
    """The strongest harmless strength before the first harmful one, what is not decided, and a sentence on all."""
    mine = [drop for drop in drops if drop.change == change.name]
    effects = [drop.effect(margin) for drop in mine]
    harm = effects.index("harmful") if "harmful" in effects else len(mine)
    borne = max((place for place in range(harm) if effects[place] == "harmless"), default=-1)
    between = [f"{drop.strength:g}" for drop in mine[borne + 1 : harm]]  # not decided, all of them
    parts = [f"holds up to {mine[borne].strength:g} {change.unit}"] if borne >= 0 else []
    if between and harm == len(mine):
        parts.append(f"not decided from {between[0]} {change.unit} on: too few images")
    elif between:
        parts.append(f"not decided at {', '.join(between)} {change.unit}: too few images")
    if harm < len(mine):
        lost = mine[harm]
        parts.append(f"{lost.difference:+.3f} ({html.interval(lost.interval)}) at {lost.strength:g} {change.unit}")
    return {
        "harmless": mine[borne].strength if borne >= 0 else None,
        "undecided": mine[borne + 1].strength if between else None,
        "harmful": mine[harm].strength if harm < len(mine) else None,
        "sentence": "; ".join(parts),
    }


def _example(report: RobustnessReport, change: Change) -> dict[str, Any]:
    """A few of the images, changed as strongly as the change goes."""
    strength = change.strengths[-1]
    return {
        "change": change.name,
        "strength": f"{strength:g} {change.unit}".strip() if change.unit else "",
        "pictures": [
            html.thumbnail(change.apply(report.images.original(i), strength, np.random.default_rng((report.seed, i))))
            for i in report.examples
        ],
    }


def _masked(report: RobustnessReport) -> dict[str, Any]:
    pictures = [html.thumbnail(image) for image in report.without.examples]
    return {"change": DECISIVE, "strength": "a quarter of the image", "pictures": pictures}
