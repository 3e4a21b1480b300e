"""95 % intervals by bootstrap over what was drawn independently: images, or the groups they belong to."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float64, Int64

from serving.contract.card.model_card import Score
from training.metrics.classification import Labels, Probabilities, Scores
from training.metrics.intervals.proportions import LEVEL, Interval, Right, newcombe, wilson
from training.metrics.intervals.resampling import ClassCounts, draws, replicates, resamples


@dataclass(frozen=True, kw_only=True)
class Intervals:
    """Percentile intervals (Efron and Tibshirani 1993, chapter 13); None where a score is undefined.

    Accuracy, recall and precision are shares, and a share of 0 or 1 has no spread to resample: their intervals are
    widened to Wilson's (1927), counted in components. That of balanced accuracy, a mean of shares, is widened to what
    Wilson's limits of these leave of it (Zou and Donner 2008).
    """

    accuracy: Interval
    balanced_accuracy: Interval
    macro_f1: Interval
    roc_auc: Interval | None
    recall: dict[str, Interval | None]
    precision: dict[str, Interval | None]


@dataclass(frozen=True, kw_only=True)
class Differences:
    """Percentile intervals of one model's score minus another's; None where a score is undefined.

    That of accuracy is widened by `widened_difference`, so that it and the p of `sign_flip` seldom disagree.
    """

    accuracy: Interval
    balanced_accuracy: Interval
    macro_f1: Interval
    roc_auc: Interval | None
    log_loss: Interval


@dataclass(frozen=True, kw_only=True)
class Rate:
    """A share of some images with its interval; None where there are none."""

    value: float | None
    interval: Interval | None
    images: int


def card_scores(scored: Scores, intervals: Intervals) -> dict[str, Score]:
    """The headline scores with their intervals, as a model card holds them."""
    return {
        name: Score(value=value, interval=getattr(intervals, name, None)) for name, value in scored.headline().items()
    }


def bootstrap(
    labels: Labels,
    probabilities: Probabilities,
    components: Int64[np.ndarray, " images"],
    classes: tuple[str, ...],
    *,
    seed: int = 0,
) -> Intervals:
    """Intervals of a split's scores; all images of one component are drawn together."""
    resampled = replicates(labels, probabilities, components, seed)
    predicted = probabilities.argmax(1)
    right = predicted == labels

    def widened(values: np.ndarray, concerned: np.ndarray) -> Interval:
        return _widened(values, right[concerned], components[concerned])

    recall: dict[str, Interval | None] = dict.fromkeys(classes)
    precision: dict[str, Interval | None] = dict.fromkeys(classes)
    for label in np.unique(labels):
        recall[classes[label]] = widened(resampled.recall[:, label], labels == label)
        if (predicted == label).any():
            precision[classes[label]] = widened(resampled.precision[:, label], predicted == label)
    return Intervals(
        accuracy=widened(resampled.accuracy, np.ones(len(labels), bool)),
        balanced_accuracy=_widened_mean(resampled.balanced_accuracy, labels, right, components),
        macro_f1=percentiles(resampled.macro_f1),
        roc_auc=_defined(resampled.roc_auc),
        recall=recall,
        precision=precision,
    )


def rate(
    right: Bool[np.ndarray, " images"],
    among: Bool[np.ndarray, " images"],
    components: Int64[np.ndarray, " images"],
    *,
    seed: int = 0,
) -> Rate:
    """The share of `right` among some images, its interval widened as those of `Intervals`.

    Drawn are the components of all images, so that shares among different ones are of the same resamples.
    """
    if not among.any():
        return Rate(value=None, interval=None, images=0)
    _, index = np.unique(components, return_inverse=True)
    hits, counts = (np.bincount(index, weights=images) for images in (right & among, among))
    with np.errstate(invalid="ignore"):  # a resample may hold none of them
        shares = [drawn @ hits / (drawn @ counts) for drawn in draws(len(counts), np.random.default_rng(seed))]
    return Rate(
        value=float(right[among].mean()),
        interval=_widened(np.concatenate(shares), right[among], components[among]),
        images=int(among.sum()),
    )


def balanced_accuracy_interval(
    labels: Labels, probabilities: Probabilities, components: Int64[np.ndarray, " images"], *, seed: int = 0
) -> Interval:
    """The interval of balanced accuracy that `bootstrap` gives, without the other scores."""
    values = [
        ClassCounts.of(labels, probabilities, weights).balanced_accuracy
        for weights in resamples(components, np.random.default_rng(seed))
    ]
    return _widened_mean(np.concatenate(values), labels, probabilities.argmax(1) == labels, components)


def widened_difference(
    differences: Float64[np.ndarray, " resamples"], a: Right, b: Right, components: Int64[np.ndarray, " images"]
) -> Interval:
    """The limits of the resamples of the share of b less that of a, at least as wide as `newcombe` of the components.

    Where both decide alike on few images, resampling them knows no doubt.
    """
    low, high = percentiles(differences)
    least, most = newcombe(a, b, len(np.unique(components)))
    return min(low, least), max(high, most)


def _widened(shares: np.ndarray, right: np.ndarray, components: np.ndarray) -> Interval:
    """The limits of a share's resamples, at least as wide as Wilson's interval of as many draws as components."""
    count = float(len(np.unique(components)))
    [least], [most] = wilson(np.array([right.mean()]), np.array([count]))
    low, high = percentiles(shares)
    return min(low, float(least)), max(high, float(most))


def _widened_mean(means: np.ndarray, labels: Labels, right: np.ndarray, components: np.ndarray) -> Interval:
    """The limits of the resamples of a mean of recalls, at least as wide as Wilson's intervals of these make it.

    Zou and Donner, Construction of confidence limits about effect measures: a general approach, 2008.
    """
    of_class = [labels == label for label in np.unique(labels)]
    recalls = np.array([right[mine].mean() for mine in of_class])
    below, above = wilson(recalls, np.array([float(len(np.unique(components[mine]))) for mine in of_class]))
    mean, count = recalls.mean(), len(of_class)
    low, high = percentiles(means)
    least = float(mean - np.sqrt(((recalls - below) ** 2).sum()) / count)
    most = float(mean + np.sqrt(((above - recalls) ** 2).sum()) / count)
    return min(low, least), max(high, most)


def paired(
    labels: Labels,
    first: Probabilities,
    second: Probabilities,
    components: Int64[np.ndarray, " images"],
    *,
    seed: int = 0,
) -> Differences:
    """Intervals of the second model's scores minus the first's, both scored on the same resamples.

    What makes a resample hard is hard for both, so these are narrower than two intervals side by side suggest.
    """
    one, other = (replicates(labels, probabilities, components, seed) for probabilities in (first, second))
    a, b = (probabilities.argmax(1) == labels for probabilities in (first, second))
    return Differences(
        accuracy=widened_difference(other.accuracy - one.accuracy, a, b, components),
        balanced_accuracy=percentiles(other.balanced_accuracy - one.balanced_accuracy),
        macro_f1=percentiles(other.macro_f1 - one.macro_f1),
        roc_auc=_defined(other.roc_auc - one.roc_auc),
        log_loss=percentiles(other.log_loss - one.log_loss),
    )


def balanced_accuracy_difference(
    labels: Labels,
    first: Probabilities,
    second: Probabilities,
    components: Int64[np.ndarray, " images"],
    *,
    seed: int = 0,
) -> Interval:
    """The interval of balanced accuracy that `paired` gives, without the other scores, which take most of its time."""
    differences = []
    for weights in resamples(components, np.random.default_rng(seed)):
        one, other = (
            ClassCounts.of(labels, probabilities, weights).balanced_accuracy for probabilities in (first, second)
        )
        differences.append(other - one)
    return percentiles(np.concatenate(differences))


def _defined(values: np.ndarray) -> Interval | None:
    return None if np.isnan(values).all() else percentiles(values)


def percentiles(values: np.ndarray) -> Interval:
    """Limits of the resamples in which the score is defined, which must be one at least."""
    low, high = np.nanquantile(values, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)
