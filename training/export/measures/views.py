"""What --views is worth: scores of the same weights with and without views, and the time of an image with each."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from torch import nn

from serving.contract.card.model_card import VIEWS, Views
from training.data.dataset import Dataset
from training.export.measures.timing import median_seconds, one_image
from training.metrics import classification
from training.metrics.classification import TITLES, Scores
from training.metrics.comparison import Comparison, compare
from training.metrics.evaluation import Evaluation
from training.models import views

NAMED = ("balanced_accuracy", "roc_auc")
"""Scores whose differences the sentence names."""


@dataclass(frozen=True, kw_only=True)
class Gain:
    """The test images without views (A) and with them (B), each with a calibration of its own."""

    without: Scores
    comparison: Comparison


@dataclass(frozen=True, kw_only=True)
class MeasuredViews:
    """The views of a model, their time and what they change."""

    views: Views
    seconds: float
    """Time of one image on one thread of the CPU, without decoding."""
    seconds_without: float
    gain: Gain | None
    """None where the scores are of the folds' models: their own reports have it."""

    def facts(self) -> dict[str, Any]:
        """The part of report.json."""
        gain = self.gain
        return {
            "views": self.views,
            "count": VIEWS[self.views],
            "seconds": self.seconds,
            "seconds_without": self.seconds_without,
            "sentence": self.sentence,
            "without": gain and asdict(gain.without),
            "differences": gain and {name: asdict(each) for name, each in gain.comparison.differences.items()},
            "only_without_right": gain and gain.comparison.only_a_right,
            "only_with_right": gain and gain.comparison.only_b_right,
            "p_value": gain and gain.comparison.p_value,
        }

    @property
    def sentence(self) -> str:
        """Gain and cost for the console and the report."""
        cost = (
            f"one image takes {1000 * self.seconds:.3g} ms on one thread of the CPU, without views "
            f"{1000 * self.seconds_without:.3g} ms"
        )
        changes = [
            f"{TITLES[name]} by {each.value:+.3f} ({each.interval[0]:+.3f} to {each.interval[1]:+.3f})"
            for name, each in (self.gain.comparison.differences.items() if self.gain else ())
            if name in NAMED and each.value is not None and each.interval is not None
        ]
        changed = f" changes {' and '.join(changes)}, paired on the test images;" if changes else ":"
        return f"The mean over {VIEWS[self.views]} views of each image{changed} {cost}."


def measure_views(model: nn.Sequential, evaluation: Evaluation, dataset: Dataset, kind: Views) -> MeasuredViews | None:
    """What the views of a finished `model` cost and change; None without views."""
    if kind == "none":
        return None
    preprocessing = dataset.preprocessing
    shape = (preprocessing.height, preprocessing.width, preprocessing.channels)
    seconds, seconds_without = median_seconds(one_image(model, shape), one_image(views.without(model), shape))
    return MeasuredViews(
        views=kind,
        seconds=seconds,
        seconds_without=seconds_without,
        gain=_gain(evaluation, dataset),
    )


def warnings(measured: MeasuredViews | None) -> Iterator[str]:
    """A sentence where views make the model worse."""
    if measured is None or measured.gain is None:
        return
    difference = measured.gain.comparison.differences["balanced_accuracy"]
    if difference.better == "A":
        yield f"`--views {measured.views}` costs time and makes the answers worse. {measured.sentence}"


def _gain(evaluation: Evaluation, dataset: Dataset) -> Gain | None:
    if evaluation.plain is None:
        return None
    test = dataset.splits["test"]
    labels, components = dataset.labels[test], dataset.components[test]
    without = classification.score(labels, evaluation.plain, dataset.classes)
    answers, scores = (evaluation.plain, evaluation.probabilities["test"]), (without, evaluation.scores["test"])
    return Gain(without=without, comparison=compare(labels, answers, scores, components))
