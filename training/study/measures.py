"""The measures of a study: one number for each run, and the sentence that compares two of them."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from training.data.sources.source import Split
from training.engine.history import History
from training.engine.progress import Epoch
from training.metrics.classification import TITLES
from training.models.diagnostics import AtStart
from training.options.choices import ScoreName

IN_EQUAL_TIME = "val_score_in_equal_time"
SHARE = 0.95
LEARNED = 1.2
"""A run has learned nothing if its final score is below 1.2 times chance; then `epochs_to_95` is undefined."""


@dataclass(frozen=True, kw_only=True)
class ReferenceValues:
    """What the runs of one seed are measured against."""

    time_s: float
    """Training time, in seconds, of the quickest of the runs that are compared in equal time."""
    common_score: float | None
    """The median of the runs' validation scores after their last epochs, by `rising`; None if no run has one."""


@dataclass(frozen=True, kw_only=True)
class RunMeasurements:
    """The records of one run from which its measures are computed."""

    history: History
    """History with the validation scores that `score` names."""
    scores: Mapping[Split, Mapping[str, Any]] | None
    """Scores of the exported model, by split; None for a run that diverged."""
    reference: ReferenceValues
    """Reference values of the run's seed."""
    score: ScoreName = "balanced_accuracy"
    """Score that runs are compared by."""


@dataclass(frozen=True, kw_only=True)
class Measure:
    """A number for each run, or None where it is undefined; `sentence` compares two of them."""

    title: str
    better: Literal["higher", "lower", "as the score"] | None
    """As the score: lower where runs are compared by their log loss, else higher."""
    sentence: str
    value_of: Callable[[RunMeasurements], float | None]
    places: int = 3
    exact: bool = False
    """Whether no seed changes it, so that a difference without spread is no chance."""
    can_be_censored: bool = False
    """Whether a run has no value where it got nowhere, so that those with one are the better ones."""

    def is_loss(self, score: ScoreName) -> bool:
        """Whether it is the validation score of runs that are compared by their log loss."""
        return self.better == "as the score" and score == "log_loss"


def rising(epochs: Sequence[Epoch], score: ScoreName) -> list[Epoch]:
    """The epochs with validation scores of which more is better, and a share can be taken.

    A log loss becomes exp(-loss), the geometric mean of the probabilities that the true classes were given. Where the
    network only guesses among equally many images of each class, it is one over the number of classes, too.
    """
    if score != "log_loss":
        return [*epochs]
    return [line if line.val_score is None else replace(line, val_score=math.exp(-line.val_score)) for line in epochs]


def chance(score: ScoreName, classes: int) -> float:
    """The score, by `rising`, of a network that guesses among equally many images of each class."""
    return 0.5 if score == "roc_auc" else 1 / classes


def epochs_to_share(epochs: Sequence[Epoch], guessing: float) -> float | None:
    """Epochs until the validation score first reached 95 % of its final value, interpolated between epochs.

    None for a run whose score is undefined, or hardly above `guessing`, the score of chance: it learned nothing.
    """
    final = epochs[-1].val_score if epochs else None
    return None if final is None or final < LEARNED * guessing else epochs_to(SHARE * final, epochs)


def epochs_to(goal: float, epochs: Sequence[Epoch]) -> float | None:
    """Epochs until the validation score first reached `goal`, interpolated between epochs; None if it never did."""
    values = [line.val_score for line in epochs]
    below: float | None = None
    for epoch, value in enumerate(values):
        if value is None:
            return None
        if value >= goal:
            return 1.0 if below is None else epoch + (goal - below) / (value - below)
        below = value
    return None


def best(epochs: Sequence[Epoch]) -> float | None:
    """The validation score of the epoch that a run with this history exports, before the bias is fitted."""
    chosen = [line.val_score for line in epochs if line.best]
    return chosen[-1] if chosen else None


def in_time(epochs: Sequence[Epoch], time_s: float) -> float | None:
    """The best validation score of the epochs that ended within `time_s` seconds of training."""
    in_budget, spent = [], 0.0
    for line in epochs:
        spent += line.seconds
        if spent <= time_s:
            in_budget.append(line)
    return best(in_budget)


def _last(value_of: Callable[[Epoch], float | None]) -> Callable[[RunMeasurements], float | None]:
    return lambda run: value_of(run.history.epochs[-1]) if run.history.epochs else None


def _mean(value_of: Callable[[Epoch], float | None]) -> Callable[[RunMeasurements], float | None]:
    def mean(run: RunMeasurements) -> float | None:
        values = [value for line in run.history.epochs if (value := value_of(line)) is not None]
        return sum(values) / len(values) if values else None

    return mean


def _scored(split: Split, name: str) -> Measure:
    """A score of the exported, calibrated model; None for a run that diverged."""
    of_score, on = TITLES[name], {"val": "validation"}.get(split, split)
    article = "an" if name == "accuracy" else "a"
    return Measure(
        title=f"{of_score} on {on} images",
        better="lower" if name == "log_loss" else "higher",
        sentence=f"{{a}} had {article} {of_score} of {{x}} on {on} images against {{y}} of {{b}}",
        value_of=lambda run: None if run.scores is None else run.scores[split][name],
    )


def _gap(run: RunMeasurements) -> float | None:
    return None if run.scores is None else run.scores["train"]["accuracy"] - run.scores["val"]["accuracy"]


def _ratio(layers: Sequence[AtStart], name: str) -> float | None:
    """None where nothing was measured before the first step: of a timm architecture."""
    if not layers:
        return None
    first, last = (getattr(layers[place], name) for place in (0, -1))
    return math.log10(first / last) if first and last else None


MEASURES: dict[str, Measure] = {
    "val_score": Measure(
        title="validation score",
        better="as the score",
        sentence="{a} scored {x} on validation images against {y} of {b}",
        value_of=lambda run: None if run.scores is None else run.scores["val"][run.score],
    ),
    "final_val_score": Measure(
        title="validation score after the last epoch, before the bias is fitted",
        better="as the score",
        sentence="{a} scored {x} on validation images after the last epoch against {y} of {b}",
        value_of=_last(lambda line: line.val_score),
    ),
    IN_EQUAL_TIME: Measure(
        title="validation score in equal training time, before the bias is fitted",
        better="as the score",
        sentence="in the time that the quicker one took for all its epochs, {a} scored {x} against {y} of {b}",
        value_of=lambda run: in_time(run.history.epochs, run.reference.time_s),
        can_be_censored=True,
    ),
    **{f"{split}_{name}": _scored(split, name) for split in ("val", "test") for name in TITLES},
    "train_loss": Measure(
        title="training loss in the last epoch",
        better="lower",
        sentence="{a} ended with a training loss of {x} against {y} of {b}",
        value_of=_last(lambda line: line.train_loss),
    ),
    "gap": Measure(
        title="accuracy on training less on validation images",
        better="lower",
        sentence="{a} was {x} more accurate on training than on validation images against {y} of {b}",
        value_of=_gap,
    ),
    "epochs_to_common": Measure(
        title="epochs to 95 % of the median run's final validation score",
        better="lower",
        sentence="{a} reached 95 % of the median run's final validation score in {x} epochs against {y} of {b}",
        value_of=lambda run: (
            None
            if not run.reference.common_score
            else epochs_to(SHARE * run.reference.common_score, rising(run.history.epochs, run.score))
        ),
        places=1,
        can_be_censored=True,
    ),
    "epochs_to_95": Measure(
        title="epochs to 95 % of the final validation score",
        better="lower",
        sentence="{a} reached 95 % of its final validation score in {x} epochs against {y} of {b}",
        value_of=lambda run: epochs_to_share(
            rising(run.history.epochs, run.score), chance(run.score, run.history.classes)
        ),
        places=1,
        can_be_censored=True,
    ),
    "loss_variance": Measure(
        title="variance of the training loss between steps",
        better="lower",
        sentence="the training loss of {a} varied between steps by a variance of {x} against {y} of {b}",
        value_of=_mean(lambda line: line.loss_variance),
        places=4,
    ),
    "seconds_an_epoch": Measure(
        title="seconds an epoch",
        better="lower",
        sentence="an epoch of {a} took {x} s against {y} s of {b}",
        value_of=_mean(lambda line: line.seconds),
        places=2,
    ),
    "steps_an_epoch": Measure(
        title="steps an epoch",
        better=None,
        sentence="an epoch of {a} had {x} steps against {y} of {b}",
        value_of=lambda run: float(run.history.steps_an_epoch),
        places=0,
        exact=True,
    ),
    "parameters": Measure(
        title="parameters",
        better=None,
        sentence="{a} has {x} parameters against {y} of {b}",
        value_of=lambda run: float(run.history.parameters),
        places=0,
        exact=True,
    ),
    "gradient_ratio": Measure(
        title="gradient variance before the first step, first layer over last, log10",
        better=None,
        sentence="before the first step the gradient's variance changed from the last layer to the first by a factor "
        "of 10 to the {x} in {a} against 10 to the {y} in {b}",
        value_of=lambda run: _ratio(run.history.at_start, "gradient_variance"),
        places=2,
    ),
    "signal_ratio": Measure(
        title="activation variance before the first step, last layer over first, log10",
        better=None,
        sentence="before the first step the activations' variance changed from the first layer to the last by a factor "
        "of 10 to the {x} in {a} against 10 to the {y} in {b}",
        value_of=lambda run: _ratio(run.history.at_start[::-1], "output_variance"),
        places=2,
    ),
    "diverged": Measure(
        title="diverged",
        better="lower",
        sentence="the share of runs of {a} that diverged was {x} against {y} of {b}",
        value_of=lambda run: float(run.history.diverged is not None),
        places=2,
    ),
}
