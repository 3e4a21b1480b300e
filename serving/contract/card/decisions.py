"""How the model decides: what turns its logits and novelty into answers, by numbers that the validation split sets."""

from dataclasses import dataclass
from typing import Literal, overload

import numpy as np
from jaxtyping import Bool, Float32, Float64, Int64

DecisionScore = Literal["sensitivity", "specificity", "precision"]


@dataclass(frozen=True, kw_only=True)
class PriorCorrection:
    """Undoes for expected costs what `--balance` did to the frequencies of the classes (Saerens et al. 2002).

    Answers that count rare classes as much as common ones find more of these, but are no probabilities of an image from
    the clinic: multiplied by a cost they make each rare class too likely. A probability to the `power`, times the
    factor of its class, then in proportion so that the sum is 1; both minimise the log loss on the validation split.
    """

    power: float
    factors: tuple[float, ...]
    """By class: a power of its frequency in the training split."""

    def __call__(self, probabilities: Float32[np.ndarray, "batch classes"]) -> Float64[np.ndarray, "batch classes"]:
        """Probabilities among images in which classes are as frequent as in the validation split."""
        weights: np.ndarray = probabilities.astype(np.float64) ** self.power * np.array(self.factors)
        corrected: np.ndarray = weights / weights.sum(1, keepdims=True)
        return corrected


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """How the validation split corrects the answers of the model.

    The graph adds `bias` to the logits (Menon et al. 2021, https://arxiv.org/abs/2007.07314), and divides them by
    `temperature` before the softmax (Guo et al. 2017, https://arxiv.org/abs/1706.04599).
    A class is in the prediction set of an image if its probability is at least `threshold`. The set contains the true
    class with probability `level`, for images exchangeable with those of the validation split (split conformal
    prediction, Angelopoulos and Bates 2021, https://arxiv.org/abs/2107.07511); where images have groups, for an image
    of a new group (Lee et al. 2023, https://arxiv.org/abs/2306.06342). If the validation split is too small,
    `threshold` is None. Where the card has a familiarity, thresholds and level are of familiar images.
    """

    temperature: float
    level: float
    threshold: float | None
    bias: tuple[float, ...] = ()
    """By class; empty: nothing is added."""
    class_thresholds: tuple[float | None, ...] = ()
    """By class, in place of `threshold`, so that the level holds for the images of that class; None: the class has too
    few validation images for one of its own. Empty: the level holds for all images together."""
    prior_correction: PriorCorrection | None = None
    """None: classes were not balanced, or the validation split is too small for it."""

    def prediction_sets(self, probabilities: Float32[np.ndarray, "batch classes"]) -> Bool[np.ndarray, "batch classes"]:
        """Whether each class is in the prediction set of each image. The most likely class always is.

        Call it only if there is a `threshold`.
        """
        assert self.threshold is not None
        thresholds = self.class_thresholds or (self.threshold,)
        sets = probabilities >= np.array(
            [self.threshold if value is None else value for value in thresholds], np.float32
        )
        sets[np.arange(len(sets)), probabilities.argmax(1)] = True
        return sets


@dataclass(frozen=True, kw_only=True)
class OperatingPoint:
    """Decides for one class against all others: yes where its calibrated probability is at least `threshold`.

    The threshold reaches the `target` of the `score` on the validation split. It promises nothing for other images.
    """

    label: str
    """The class."""
    score: DecisionScore
    target: float
    threshold: float

    @overload
    def decides(self, probability: float) -> bool: ...
    @overload
    def decides(self, probability: Float32[np.ndarray, " images"]) -> Bool[np.ndarray, " images"]: ...
    def decides(self, probability: float | Float32[np.ndarray, " images"]) -> bool | np.ndarray:
        """The decision for a probability of the class, or for each of several."""
        return _in_double_precision(probability) >= self.threshold


@dataclass(frozen=True, kw_only=True)
class Costs:
    """A cost matrix (Elkan 2001): its actions are the classes, and perhaps others, such as `refer`."""

    actions: tuple[str, ...]
    matrix: tuple[tuple[float, ...], ...]
    """A row for each class of the model, in its order, and in it the cost of each action where that class is true."""

    def expected(self, probabilities: Float64[np.ndarray, "batch classes"]) -> Float64[np.ndarray, "batch actions"]:
        """The expected cost of each action, by the probabilities of the classes."""
        costs: np.ndarray = probabilities @ np.array(self.matrix, np.float64)
        return costs

    def least(self, probabilities: Float64[np.ndarray, "batch classes"]) -> Int64[np.ndarray, " batch"]:
        """Index of the action of the least expected cost; of equal ones the first."""
        chosen: np.ndarray = self.expected(probabilities).argmin(1)
        return chosen


@dataclass(frozen=True, kw_only=True)
class Familiarity:
    """Decides which images are unfamiliar: those whose novelty is above `threshold`.

    Novelty is an output of the graph: the Mahalanobis distance from the nearest class of the training images (Lee et
    al. 2018, https://arxiv.org/abs/1807.03888). Of images exchangeable with those of the validation split, a share of
    `false_alarms` at most is unfamiliar, with a confidence of 90 % (Vovk 2012, https://arxiv.org/abs/1209.2673).
    """

    threshold: float
    false_alarms: float
    images: int
    """Number of validation images that set the threshold."""

    @overload
    def unfamiliar(self, novelty: float) -> bool: ...
    @overload
    def unfamiliar(self, novelty: Float32[np.ndarray, " images"]) -> Bool[np.ndarray, " images"]: ...
    def unfamiliar(self, novelty: float | Float32[np.ndarray, " images"]) -> bool | np.ndarray:
        """The decision for a value, or for each of several."""
        return _in_double_precision(novelty) > self.threshold


def _in_double_precision(values: float | np.ndarray) -> float | np.ndarray:
    """As the thresholds are: one that is rounded to float32 may pass a value."""
    return values.astype(np.float64) if isinstance(values, np.ndarray) else values
