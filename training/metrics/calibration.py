"""Correct a model's answers by the validation split: a bias by class, a temperature, a threshold for prediction sets.

All assume that the images of tomorrow are exchangeable with those of the validation split: drawn from the same
patients, cameras and habits, in any order. Where that stops being true, so does what they promise.
"""

import math
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float32, Float64
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax, softmax

from serving.contract.card import Calibration
from training.metrics.classification import Labels, Probabilities

MIN_IMAGES = 30
"""With fewer validation images nothing is fitted: temperature 1, no prediction sets."""
LOG_TEMPERATURE_BOUNDS = (math.log(0.05), math.log(20))

Logits = Float32[np.ndarray, "images classes"]


@dataclass(frozen=True, kw_only=True)
class Coverage:
    """How often prediction sets held the true class, and how large they were."""

    level: float
    coverage: float
    mean_size: float
    by_class: dict[str, float | None]
    """Coverage of each class's images; None for a class without any."""


def fit(labels: Labels, logits: Logits, level: float, bias: tuple[float, ...] = ()) -> Calibration:
    """Temperature and threshold from the validation split's logits and the bias; neither from fewer than 30 images."""
    unfitted = Calibration(temperature=1.0, level=level, threshold=None, bias=bias)
    if len(labels) < MIN_IMAGES:
        return unfitted
    temperature = fit_temperature(labels, corrected(logits, unfitted))
    fitted = replace(unfitted, temperature=temperature)
    probabilities = softmax(corrected(logits, fitted), axis=1)
    return replace(fitted, threshold=fit_threshold(labels, probabilities, level))


def corrected(logits: Logits, calibration: Calibration) -> Logits:
    """The logits with the bias, divided by the temperature, as the last layer of the model gives them."""
    biased = logits + np.array(calibration.bias, np.float32) if calibration.bias else logits
    return biased / np.float32(calibration.temperature)


def fit_bias(labels: Labels, logits: Logits, frequencies: Float64[np.ndarray, " classes"]) -> tuple[float, ...]:
    """A share of minus the log of each class's frequency in training, 0 to 1 (post-hoc logit adjustment, Menon et al.).

    It minimises the log loss of an image plus that of a class on the validation split, as the accuracy of an image and
    that of a class both count. The losses are smooth: accuracies themselves move in steps, by a few images of rare
    classes, and chose 0.6 and 0.0 for two runs that differ only in `--symmetry`, where the losses choose 0.34 and 0.27.
    Frequencies belong to calibrated logits, so the bias is multiplied by the temperature without it. Empty from fewer
    than 30 images.
    """
    if len(labels) < MIN_IMAGES:
        return ()
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


def fit_threshold(labels: Labels, probabilities: Probabilities, level: float) -> float | None:
    """The probability from which a class belongs to the prediction set (split conformal; Sadinle et al. 2019).

    The k-th largest probability of the true class, k = ceil((n + 1) level): a new image's true class reaches it with
    at least that probability. None when n is too small for the level.
    """
    rank = math.ceil((len(labels) + 1) * level)
    if rank > len(labels):
        return None
    of_true_class = np.sort(probabilities[np.arange(len(labels)), labels])[::-1]
    return float(of_true_class[rank - 1])


def coverage(
    labels: Labels, probabilities: Probabilities, calibration: Calibration, classes: tuple[str, ...]
) -> Coverage | None:
    """What the prediction sets do on a split they were not fitted on; None without a threshold."""
    if calibration.threshold is None:
        return None
    sets = calibration.prediction_sets(probabilities)
    held = sets[np.arange(len(labels)), labels]
    return Coverage(
        level=calibration.level,
        coverage=float(held.mean()),
        mean_size=float(sets.sum(1).mean()),
        by_class={
            name: float(held[labels == label].mean()) if (labels == label).any() else None
            for label, name in enumerate(classes)
        },
    )
