"""The facts of a run that its report states: what report.json holds, with the warnings."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Literal

import numpy as np

from serving.contract.card.model_card import TOLERANCE, ModelCard
from serving.contract.files.names import MODEL
from serving.contract.model import Answers
from training.data.dataset import Dataset, digest_of_test
from training.data.metadata_baseline import LARGE_SHARE
from training.data.sources.source import Split
from training.engine.progress import Epoch
from training.export.measures import views
from training.export.measures.views import MeasuredViews
from training.export.parity import NOVELTY_TOLERANCE, Parity
from training.export.quantization.int8_file import Int8Comparison
from training.metrics.calibration import MIN_IMAGES, coverage, coverage_warnings
from training.metrics.classification import (
    CALIBRATION_TITLES,
    OVERFITTING_GAP,
    Probabilities,
    ScoredImages,
    Scores,
    overfitting,
    risk_coverage,
)
from training.metrics.evaluation import LeakFree
from training.metrics.familiarity.novelty import Novelty, familiar_images, novelty_facts, novelty_warnings, why_none
from training.metrics.intervals.bootstrap import Intervals
from training.metrics.slices import slices
from training.metrics.subgroups import columns_by_score, subgroup_facts, subgroup_warnings
from training.models import weights
from training.options.settled import SettledConfig
from training.report import html
from training.report.audit import audit_warnings
from training.report.decisions import Decisions, cost_facts, decision_facts, decision_warnings, measure_decisions
from training.report.looks import EarlierLooks
from training.report.promotion import Promotion


@dataclass(frozen=True, kw_only=True)
class ReportInput:
    """The results of a run, from which its report is made."""

    config: SettledConfig
    card: ModelCard
    dataset: Dataset
    history: Sequence[Epoch]
    scores: dict[Split, Scores]
    intervals: Intervals
    uncalibrated: Scores
    """Scores on the test split before the calibration."""
    validation: Answers
    """Calibrated, of the validation split."""
    out_of_fold: Probabilities | None
    """The answers that are scored, where they are of the folds' models and not of the served file."""
    parity: Parity
    views: MeasuredViews | None
    quantized: Int8Comparison | None
    """None without --quantize, and where the file was refused."""
    no_int8: str | None
    """Why the eight-bit file was refused."""
    environment: dict[str, str]
    leak_free: LeakFree | None
    blank: dict[str, Novelty]
    """Novelty of images that show nothing, by their kind; empty where the model has none."""
    looks: EarlierLooks
    """At the test split, before this run's."""
    promotion: Promotion
    """As it is before the report is written."""

    @property
    def answers(self) -> Probabilities:
        """The answers to the test images that the report scores."""
        return self.parity.served if self.out_of_fold is None else self.out_of_fold

    def scored(self, split: Literal["val", "test"]) -> ScoredImages:
        """The images of a split with what the model, and for the test what the served file answers."""
        indices = self.dataset.splits[split]
        return ScoredImages(
            labels=self.dataset.labels[indices],
            probabilities=self.validation.probabilities if split == "val" else self.answers,
            components=self.dataset.components[indices],
        )


def decisions_on_test(inputs: ReportInput) -> Decisions:
    """The decisions for one class on the test split, of what the file answers that is served."""
    return measure_decisions(
        inputs.card.operating_points, inputs.card.classes, inputs.scored("test"), inputs.scored("val")
    )


def run_facts(inputs: ReportInput, decisions: Decisions) -> dict[str, object]:
    """The content of report.json, from which report.html and report.md are filled too."""
    dataset, scores, parity = inputs.dataset, inputs.scores, inputs.parity
    sliced = slices(dataset, inputs.config.slices, dataset.splits["test"])
    sets = inputs.card.prediction_sets(inputs.answers, parity.served_novelty)
    columns = columns_by_score(sliced.columns, dataset.splits["test"], inputs.scored("test"), sets)
    labels = dataset.labels[dataset.splits["test"]]
    unknown = novelty_facts(
        inputs.card.familiarity, parity.served_novelty, inputs.scored("test").components, inputs.blank
    )
    familiar = familiar_images(inputs.card, parity.served_novelty)
    covered = coverage(labels, sets, inputs.card.calibration.level, dataset.classes, familiar)
    return {
        "run": inputs.config.run.name,
        "model": str(inputs.config.run / MODEL),
        "statement": inputs.card.statement,
        "calibrated_on": "validation split" if inputs.out_of_fold is None else "out-of-fold answers",
        "warnings": [
            *_warnings(inputs),
            *decision_warnings(decisions, inputs.config.operate, "test images"),
            *coverage_warnings(inputs.scored("test"), sets, inputs.card.calibration.level, familiar, "test images"),
            *subgroup_warnings(columns),
            *novelty_warnings(unknown, "test images"),
            *views.warnings(inputs.views),
        ],
        "title_of_model": _title_of_model(inputs.config),
        "data": {
            "name": dataset.name,
            "images": len(dataset.keys),
            "digest": dataset.digest,
            "test_digest": digest_of_test(dataset),
            "classes": [{"name": name} | counts for name, counts in dataset.audit.counts.items()],
        },
        "scores": {split: asdict(scored) for split, scored in scores.items()},
        "intervals": asdict(inputs.intervals),
        "calibration": {
            **asdict(inputs.card.calibration),
            "before": {name: getattr(inputs.uncalibrated, name) for name in CALIBRATION_TITLES},
            "after": {name: getattr(scores["test"], name) for name in CALIBRATION_TITLES},
            "prediction_sets": covered and asdict(covered),
        },
        "decisions": decision_facts(decisions),
        "costs": cost_facts(inputs.card, inputs.scored("test")),
        "unknown": unknown,
        "subgroups": subgroup_facts(columns, sliced.left_out),
        "risk_coverage": asdict(risk_coverage(labels, inputs.answers)),
        "shortcut": _shortcut(inputs),
        "leak_free": inputs.leak_free and asdict(inputs.leak_free),
        "promotion": inputs.promotion.facts(),
        "test_looks": inputs.looks.facts(),
        "overfitting": overfitting(scores["train"].accuracy, scores["val"].accuracy),
        "parity": _parity(parity),
        "views": inputs.views and inputs.views.facts(),
        "quantized": _quantized(inputs.quantized),
        "history": [asdict(line) for line in inputs.history],
        "environment": inputs.environment,
        "card": json.loads(replace(inputs.card, goldens=()).to_json()),
    }


def _parity(parity: Parity) -> dict[str, object]:
    return {
        "held": not parity.faults,
        "images": parity.images,
        "tolerance": TOLERANCE,
        "normalization": asdict(parity.normalization),
        "comparisons": [asdict(way) for way in parity.ways],
        "novelty": asdict(parity.novelty) | {"tolerance": NOVELTY_TOLERANCE} if parity.novelty else None,
    }


def _title_of_model(config: SettledConfig) -> str:
    name = config.model.upper() if config.own_network else config.model
    frozen = ", the last layer alone trained, on features computed once without augmentation" if config.freeze else ""
    return f"{name}{frozen}"


def _quantized(quantized: Int8Comparison | None) -> dict[str, object] | None:
    return asdict(quantized) | {"published": quantized.published} if quantized else None


def _shortcut(inputs: ReportInput) -> dict[str, object] | None:
    baseline, model = inputs.dataset.audit.baseline, inputs.scores["test"].balanced_accuracy
    return asdict(baseline) | {"model": model, "share": baseline.share(model)} if baseline else None


def _leak_free(given: Scores, free: LeakFree) -> str:
    accuracy, balanced = free.scores.accuracy, free.scores.balanced_accuracy
    return (
        f"{given.images - free.scores.images:,} of the {given.images:,} test images show a picture, or are of a group, "
        f"that is in training or validation, too. Without them the accuracy is {accuracy:.3f} "
        f"({html.interval(free.intervals.accuracy)}), as given {given.accuracy:.3f}; the balanced accuracy "
        f"{balanced:.3f} ({html.interval(free.intervals.balanced_accuracy)}), as given {given.balanced_accuracy:.3f}."
    )


def _warnings(inputs: ReportInput) -> Iterator[str]:
    """Sentences on what to know before trusting the model."""
    scores, calibration, shortcut = inputs.scores["test"], inputs.card.calibration, inputs.dataset.audit.baseline
    yield from audit_warnings(inputs.dataset.audit)
    if inputs.leak_free is not None:
        yield _leak_free(scores, inputs.leak_free)
    share = shortcut and shortcut.share(scores.balanced_accuracy)
    if shortcut and share and share >= LARGE_SHARE:
        yield (
            "Size, format, bytes and mean colour alone, without the picture, reach a balanced accuracy of "
            f"{shortcut.best:.1%}: {share:.0%} of what the model gains over chance ({shortcut.chance:.1%}). "
            "Check that the classes were not photographed or stored in different ways."
        )
    confusion = np.array(scores.confusion)
    if len(predicted := np.flatnonzero(confusion.sum(0))) == 1:
        yield f"The model predicts {inputs.card.classes[predicted[0]]} for every test image."
    commonest = int(confusion.sum(1).argmax())
    if scores.accuracy <= (right := confusion.sum(1)[commonest] / scores.images):
        yield f"Always predicting {inputs.card.classes[commonest]} is right at least as often: {right:.1%}."
    pretrained = inputs.card.provenance.weights
    if pretrained and (sentence := weights.licence_warning(pretrained)):
        yield sentence
    if calibration.threshold is None:
        count = len(inputs.dataset.splits["val"])
        what = "prediction sets" if count >= MIN_IMAGES else "a temperature and for prediction sets"
        yield f"{count} validation images are too few for {what} at a level of {calibration.level:.0%}."
    if (demanded := inputs.config.unfamiliar) and inputs.card.familiarity is None and inputs.out_of_fold is None:
        yield why_none(inputs.dataset.components[inputs.dataset.splits["val"]], demanded)
    yield from _eight_bit_warnings(inputs)
    training, validation = inputs.scores["train"].accuracy, inputs.scores["val"].accuracy
    if training - validation >= OVERFITTING_GAP:
        yield overfitting(training, validation)


def _eight_bit_warnings(inputs: ReportInput) -> Iterator[str]:
    quantized = inputs.quantized
    if inputs.no_int8:
        yield f"There is no model.int8.onnx: {inputs.no_int8}. model.onnx is published."
    if quantized and quantized.faults:
        yield (
            "model.int8.onnx was not published: the rule of promotion does not hold for its own answers: "
            f"{'; '.join(quantized.faults)}."
        )
    elif quantized and not quantized.published:
        yield (
            "model.int8.onnx was not published: its labels agree with those of model.onnx on "
            f"{quantized.agreement:.1%} of the {quantized.images:,} test images, less than the "
            f"{quantized.least_agreement:.3g} of --int8-agreement. model.onnx is published."
        )
    elif quantized and quantized.lost_decisions:
        lost = ", ".join(quantized.lost_decisions)
        yield f"model.int8.onnx has no decision for {lost}: none of its thresholds reaches what --operate demands."
