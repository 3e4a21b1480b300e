"""Correct a model's answers by the validation split: bias, temperature, priors, a threshold for prediction sets.

All assume that the images of tomorrow are exchangeable with those of the validation split: drawn from the same
patients, cameras and habits, in any order. Where that stops being true, so does what they promise.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Bool, Float32, Float64
from scipy.optimize import minimize, minimize_scalar
from scipy.special import log_softmax

from serving.contract.card.decisions import Calibration, PriorCorrection
from training.metrics.classification import Labels, ScoredImages
from training.metrics.intervals.bootstrap import rate
from training.options.choices import Balance

MIN_IMAGES = 30
"""With fewer validation images nothing is fitted: temperature 1, no prediction sets."""
FEW = 20
"""A class of fewer validation images or groups has no threshold of its own: its coverage would be left to chance."""
ROUNDING = 1e-9
"""Rounding error of sums of shares of components."""
LOG_TEMPERATURE_BOUNDS = (math.log(0.05), math.log(20))

Logits = Float32[np.ndarray, "images classes"]
Sets = Bool[np.ndarray, "images classes"]
Frequencies = Float64[np.ndarray, " classes"]
"""Share of each class among the training images."""


@dataclass(frozen=True, kw_only=True)
class Coverage:
    """How often prediction sets held the true class, and how large they were."""

    level: float
    images: int
    coverage: float
    mean_size: float
    by_class: dict[str, float | None]
    """Coverage of each class's images; None for a class without any."""
    familiar: "Coverage | None"
    """Coverage of the familiar images, which the level is meant for; None without any, or if the model does not say."""


def fit(labels: Labels, logits: Logits, level: float, balance: Balance, frequencies: Frequencies) -> Calibration:
    """Bias, temperature and correction of priors from the validation split's logits; none from fewer than 30 images."""
    unfitted = Calibration(temperature=1.0, level=level, threshold=None)
    if len(labels) < MIN_IMAGES:
        return unfitted
    biased = replace(unfitted, bias=fit_bias(labels, logits, frequencies) if balance == "bias" else ())
    fitted = replace(biased, temperature=fit_temperature(labels, corrected(logits, biased)))
    if balance == "none":
        return fitted
    return replace(fitted, prior_correction=fit_priors(labels, corrected(logits, fitted), frequencies))


def with_thresholds(calibration: Calibration, scored: ScoredImages, *, by_class: bool) -> Calibration:
    """The calibration with the thresholds of its prediction sets; none where the images are too few for its level.

    `by_class`: also a threshold for each class with 20 or more images and groups.
    """
    threshold = fit_threshold(scored, calibration.level)
    class_thresholds = fit_class_thresholds(scored, calibration.level) if by_class and threshold is not None else ()
    return replace(calibration, threshold=threshold, class_thresholds=class_thresholds)


def corrected(logits: Logits, calibration: Calibration) -> Logits:
    """The logits with the bias, divided by the temperature, as the last layer of the model gives them."""
    biased = logits + np.array(calibration.bias, np.float32) if calibration.bias else logits
    return biased / np.float32(calibration.temperature)


def fit_bias(labels: Labels, logits: Logits, frequencies: Frequencies) -> tuple[float, ...]:
    """A share of minus the log of each class's frequency in training, 0 to 1 (post-hoc logit adjustment, Menon et al.).

    It minimises the log loss of an image plus that of a class on the validation split, as the accuracy of an image and
    that of a class both count. The losses are smooth: accuracies themselves move in steps, by a few images of rare
    classes, and chose 0.6 and 0.0 for two runs that differ only in `--symmetry`, where the losses choose 0.34 and 0.27.
    Frequencies belong to calibrated logits, so the bias is multiplied by the temperature without it.
    """
    temperature, rarity = fit_temperature(labels, logits), -np.log(frequencies)
    calibrated, each = logits.astype(np.float64) / temperature, np.arange(len(labels))
    weight = 1 / len(labels) + (1 / np.bincount(labels, minlength=len(rarity)).clip(1))[labels] / len(np.unique(labels))

    def loss(share: float) -> float:
        return float(-log_softmax(calibrated + share * rarity, axis=1)[each, labels] @ weight)

    share = minimize_scalar(loss, bounds=(0, 1), method="bounded").x
    return tuple(map(float, temperature * share * rarity))


def fit_temperature(labels: Labels, logits: Logits) -> float:
    """The divisor of the logits that minimises the log loss (Guo et al. 2017); it changes no predicted label.

    As if each image's label were known but for one part in n + 1 (compare Platt 1999): n images without a mistake do
    not show that there is none, and without this the temperature would fall to zero and every answer be certain.
    """
    exact = logits.astype(np.float64)
    doubt = 1 / (len(labels) + 1)

    def loss(log_temperature: float) -> float:
        log_probabilities = log_softmax(exact / math.exp(log_temperature), axis=1)
        of_true_class = log_probabilities[np.arange(len(labels)), labels]
        return float(-((1 - doubt) * of_true_class + doubt * log_probabilities.mean(1)).mean())

    return math.exp(minimize_scalar(loss, bounds=LOG_TEMPERATURE_BOUNDS, method="bounded").x)


def fit_priors(labels: Labels, logits: Logits, frequencies: Frequencies) -> PriorCorrection:
    """The correction with the smallest log loss, of calibrated logits.

    Doubt as for the temperature. Two parameters, in which the loss is convex: a shift by class of its own would follow
    the few validation images of a rare class.
    """
    logs, each = log_softmax(logits.astype(np.float64), axis=1), np.arange(len(labels))
    rarity, doubt = np.log(frequencies), 1 / (len(labels) + 1)

    def loss(parameters: Float64[np.ndarray, " 2"]) -> float:
        log_probabilities = log_softmax(parameters[0] * logs + parameters[1] * rarity, axis=1)
        of_true_class = log_probabilities[each, labels]
        return float(-((1 - doubt) * of_true_class + doubt * log_probabilities.mean(1)).mean())

    power, share = minimize(loss, x0=(1.0, 0.0), bounds=[(0.05, 20), (-5, 5)], method="L-BFGS-B").x
    return PriorCorrection(power=float(power), factors=tuple(map(float, frequencies**share)))


def fit_threshold(scored: ScoredImages, level: float) -> float | None:
    """The probability from which a class belongs to the prediction set (split conformal; Sadinle et al. 2019).

    Where each image is alone, the k-th largest probability of the true class, k = ceil((n + 1) level): a new image's
    true class reaches it with at least that probability. The images of a component, a patient's say, count as one
    together, which promises the same for an image of a new patient (Lee et al. 2023, "Distribution-free inference with
    hierarchical data"); a k-th of all images would promise too much where patients differ. None when the components are
    too few for the level.
    """
    of_true_class = scored.probabilities[np.arange(len(scored.labels)), scored.labels]
    _, component, sizes = np.unique(scored.components, return_inverse=True, return_counts=True)
    order = np.argsort(-of_true_class, kind="stable")
    counted = np.cumsum(1 / sizes[component[order]])
    reached = np.flatnonzero(counted >= (len(sizes) + 1) * level - ROUNDING)
    return float(of_true_class[order[reached[0]]]) if len(reached) else None


def fit_class_thresholds(scored: ScoredImages, level: float) -> tuple[float | None, ...]:
    """`fit_threshold` on the images of each class (Mondrian conformal prediction, Vovk et al. 2005, section 4.5).

    A new image's true class then reaches its own threshold with at least that probability, whatever class it is. None
    for a class with fewer than 20 images or components, or too few for the level.
    """
    by_class = (scored.chosen(scored.labels == label) for label in range(scored.probabilities.shape[1]))
    return tuple(fit_threshold(some, level) if len(np.unique(some.components)) >= FEW else None for some in by_class)


def held_for(calibration: Calibration, classes: Sequence[str]) -> str:
    """The images for which the level of the prediction sets holds, as the end of a sentence."""
    if not calibration.class_thresholds:
        return "and over all classes together, not for each"
    thresholds = zip(classes, calibration.class_thresholds, strict=True)
    if few := [name for name, value in thresholds if value is None]:
        return f"for each class but {', '.join(few)}, of which there were too few: they share one threshold"
    return "for each class"


def coverage(
    labels: Labels,
    sets: Sets | None,
    level: float,
    classes: tuple[str, ...],
    familiar: Bool[np.ndarray, " images"] | None = None,
) -> Coverage | None:
    """What the prediction sets do on a split they were not fitted on; None without sets or images.

    `familiar` are the images that the model knows; the sets of the others are empty.
    """
    if sets is None or not len(labels):
        return None
    held = sets[np.arange(len(labels)), labels]
    of_familiar = None if familiar is None else coverage(labels[familiar], sets[familiar], level, classes)
    return Coverage(
        level=level,
        images=len(labels),
        coverage=float(held.mean()),
        mean_size=float(sets.sum(1).mean()),
        by_class={
            name: float(held[labels == label].mean()) if (labels == label).any() else None
            for label, name in enumerate(classes)
        },
        familiar=of_familiar,
    )


def coverage_warnings(
    scored: ScoredImages, sets: Sets | None, level: float, familiar: Bool[np.ndarray, " images"] | None, kind: str
) -> Iterator[str]:
    """A sentence where fewer sets hold the true class than `level`, and chance does not explain it.

    `kind` is what the images are called. Of `familiar` images alone, if the model says which these are.
    """
    if sets is None:
        return
    held = sets[np.arange(len(sets)), scored.labels]
    reached = rate(held, np.ones(len(held), bool) if familiar is None else familiar, scored.components)
    if reached.interval is not None and reached.interval[1] < level:
        low, high = reached.interval
        yield (
            f"The prediction sets, meant to hold the true class of {level:.0%} of the images, hold it in "
            f"{reached.value:.1%} of {reached.images:,} {kind} ({low:.1%} to {high:.1%}): these are unlike the images "
            "that the sets were fitted to."
        )
