"""What a study measures of each of its runs."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from training.data.formats import Split
from training.engine.history import History
from training.engine.progress import Epoch
from training.models.diagnostics import AtStart

IN_EQUAL_TIME = "val_score_in_equal_time"
SHARE = 0.95
LEARNED = 1.2
"""A final score below so many times chance is none, and has no 95 % that could be reached."""


@dataclass(frozen=True, kw_only=True)
class Seen:
    """What a run left that is measured."""

    history: History
    scores: Mapping[Split, Mapping[str, Any]] | None
    """Of the exported weights, by split; None of a run that diverged."""
    time_s: float
    """Training time of the quickest run of the same seed of those that are compared in equal time."""
    common_score: float | None
    """The median of what all runs of the same seed scored on validation images in the end; None if none has a score."""


@dataclass(frozen=True, kw_only=True)
class Measure:
    """A number that every run has, or has not; `sentence` compares two of them."""

    title: str
    better: Literal["higher", "lower"] | None
    sentence: str
    of: Callable[[Seen], float | None]
    places: int = 3


def epochs_to_share(epochs: Sequence[Epoch], classes: int) -> float | None:
    """Epochs until the validation score first reached 95 % of what it was in the end, interpolated between epochs.

    None of a run that learned nothing, or whose score is undefined.
    """
    final = epochs[-1].val_score if epochs else None
    return None if final is None or final < LEARNED / classes else epochs_to(SHARE * final, epochs)


def epochs_to(goal: float, epochs: Sequence[Epoch]) -> float | None:
    """Epochs until the validation score first reached `goal`, interpolated between epochs; None if it never did."""
    values = [line.val_score for line in epochs]
    below: float | None = None
    for reached, value in enumerate(values):
        if value is None:
            return None
        if value >= goal:
            return 1.0 if below is None else reached + (goal - below) / (value - below)
        below = value
    return None


def best(epochs: Sequence[Epoch]) -> float | None:
    """The validation score of the weights that are exported."""
    chosen = [line.val_score for line in epochs if line.best]
    return chosen[-1] if chosen else None


def in_time(epochs: Sequence[Epoch], time_s: float) -> float | None:
    """The best validation score of the epochs that were done within so many seconds of training."""
    done, spent = [], 0.0
    for line in epochs:
        spent += line.seconds
        if spent <= time_s:
            done.append(line)
    return best(done)


def _last(of: Callable[[Epoch], float | None]) -> Callable[[Seen], float | None]:
    return lambda seen: of(seen.history.epochs[-1]) if seen.history.epochs else None


def _mean(of: Callable[[Epoch], float | None]) -> Callable[[Seen], float | None]:
    def mean(seen: Seen) -> float | None:
        values = [value for line in seen.history.epochs if (value := of(line)) is not None]
        return sum(values) / len(values) if values else None

    return mean


def _scored(split: Split, name: str) -> Callable[[Seen], float | None]:
    return lambda seen: None if seen.scores is None else seen.scores[split][name]


def _gap(seen: Seen) -> float | None:
    return None if seen.scores is None else seen.scores["train"]["accuracy"] - seen.scores["val"]["accuracy"]


def _ratio(layers: Sequence[AtStart], name: str) -> float | None:
    first, last = (getattr(layers[place], name) for place in (0, -1))
    return math.log10(first / last) if first and last else None


MEASURES: dict[str, Measure] = {
    "val_score": Measure(
        title="validation score",
        better="higher",
        sentence="{a} scored {x} on validation images against {y} of {b}",
        of=lambda seen: best(seen.history.epochs),
    ),
    "final_val_score": Measure(
        title="validation score after the last epoch",
        better="higher",
        sentence="{a} scored {x} on validation images after the last epoch against {y} of {b}",
        of=_last(lambda line: line.val_score),
    ),
    IN_EQUAL_TIME: Measure(
        title="validation score in equal training time",
        better="higher",
        sentence="in the time that the quicker one took for all its epochs, {a} scored {x} against {y} of {b}",
        of=lambda seen: in_time(seen.history.epochs, seen.time_s),
    ),
    "test_balanced_accuracy": Measure(
        title="balanced accuracy on test images",
        better="higher",
        sentence="{a} had a balanced accuracy of {x} on test images against {y} of {b}",
        of=_scored("test", "balanced_accuracy"),
    ),
    "train_loss": Measure(
        title="training loss in the last epoch",
        better="lower",
        sentence="{a} ended with a training loss of {x} against {y} of {b}",
        of=_last(lambda line: line.train_loss),
    ),
    "gap": Measure(
        title="accuracy on training less on validation images",
        better="lower",
        sentence="{a} was {x} more accurate on training than on validation images against {y} of {b}",
        of=_gap,
    ),
    "epochs_to_common": Measure(
        title="epochs to 95 % of the median run's final validation score",
        better="lower",
        sentence="{a} reached 95 % of the median run's final validation score in {x} epochs against {y} of {b}",
        of=lambda seen: None if not seen.common_score else epochs_to(SHARE * seen.common_score, seen.history.epochs),
        places=1,
    ),
    "epochs_to_95": Measure(
        title="epochs to 95 % of the final validation score",
        better="lower",
        sentence="{a} reached 95 % of its final validation score in {x} epochs against {y} of {b}",
        of=lambda seen: epochs_to_share(seen.history.epochs, seen.history.classes),
        places=1,
    ),
    "loss_variance": Measure(
        title="variance of the training loss between steps",
        better="lower",
        sentence="the training loss of {a} varied between steps by a variance of {x} against {y} of {b}",
        of=_mean(lambda line: line.loss_variance),
        places=4,
    ),
    "seconds_an_epoch": Measure(
        title="seconds an epoch",
        better="lower",
        sentence="an epoch of {a} took {x} s against {y} s of {b}",
        of=_mean(lambda line: line.seconds),
        places=2,
    ),
    "steps_an_epoch": Measure(
        title="steps an epoch",
        better=None,
        sentence="an epoch of {a} had {x} steps against {y} of {b}",
        of=lambda seen: float(seen.history.steps_an_epoch),
        places=0,
    ),
    "parameters": Measure(
        title="parameters",
        better=None,
        sentence="{a} has {x} parameters against {y} of {b}",
        of=lambda seen: float(seen.history.parameters),
        places=0,
    ),
    "gradient_ratio": Measure(
        title="gradient variance before the first step, first layer over last, log10",
        better=None,
        sentence="before the first step the gradient's variance changed from the last layer to the first by a factor "
        "of 10 to the {x} in {a} against 10 to the {y} in {b}",
        of=lambda seen: _ratio(seen.history.at_start, "gradient_variance"),
        places=2,
    ),
    "signal_ratio": Measure(
        title="activation variance before the first step, last layer over first, log10",
        better=None,
        sentence="before the first step the activations' variance changed from the first layer to the last by a factor "
        "of 10 to the {x} in {a} against 10 to the {y} in {b}",
        of=lambda seen: _ratio(seen.history.at_start[::-1], "output_variance"),
        places=2,
    ),
    "diverged": Measure(
        title="diverged",
        better="lower",
        sentence="the share of runs of {a} that diverged was {x} against {y} of {b}",
        of=lambda seen: float(seen.history.diverged is not None),
        places=2,
    ),
}
