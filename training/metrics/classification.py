"""Scores of predicted probabilities against true labels."""

import math
import warnings
from dataclasses import dataclass
from itertools import count

import numpy as np
from jaxtyping import Bool, Float32, Float64, Int64
from sklearn.exceptions import UndefinedMetricWarning
from sklearn.metrics import confusion_matrix, precision_recall_fscore_support, roc_auc_score

from training.options.choices import ScoreName

TITLES = {
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced accuracy",
    "macro_f1": "macro F1",
    "roc_auc": "ROC AUC",
    "log_loss": "log loss",
}
CALIBRATION_TITLES = {
    "log_loss": "log loss",
    "brier_score": "Brier score (0 to 2)",
    "expected_calibration_error": "expected calibration error",
}

BINS = 15
OVERFITTING_GAP = 0.10
"""A training accuracy this far above the validation accuracy is called overfitting."""
PERCENT_HANDED_OVER = (0, 5, 10, 20, 30, 50)

Probabilities = Float32[np.ndarray, "images classes"]
Labels = Int64[np.ndarray, " images"]


@dataclass(frozen=True, kw_only=True)
class ScoredImages:
    """Images with their labels and what a model answers; images of one component were drawn together."""

    labels: Labels
    probabilities: Probabilities
    components: Int64[np.ndarray, " images"]

    def chosen(self, some: Bool[np.ndarray, " images"]) -> "ScoredImages":
        """Those of the images that `some` is true for."""
        return ScoredImages(
            labels=self.labels[some], probabilities=self.probabilities[some], components=self.components[some]
        )


@dataclass(frozen=True, kw_only=True)
class ClassScores:
    """Scores of one class; None where the split holds none of its images, or nothing was predicted as it."""

    name: str
    support: int
    precision: float | None
    recall: float | None
    f1: float | None


@dataclass(frozen=True, kw_only=True)
class Scores:
    """Scores of one split. Averages go over the classes that the split holds."""

    images: int
    accuracy: float
    balanced_accuracy: float
    macro_f1: float
    roc_auc: float | None
    """Area under the ROC curve, one class against the rest, averaged over classes; None with one class present."""
    log_loss: float
    brier_score: float
    expected_calibration_error: float
    by_class: tuple[ClassScores, ...]
    confusion: tuple[tuple[int, ...], ...]
    """Counts: rows are true classes, columns predicted ones."""

    def rank(self, by: ScoreName) -> tuple[float, float]:
        """Greater is better: by this score, the log loss deciding between equals; an undefined score is the worst."""
        value: float | None = getattr(self, by)
        if value is None:
            return -math.inf, -self.log_loss
        return (-value if by == "log_loss" else value), -self.log_loss

    def headline(self) -> dict[str, float | None]:
        """What the model card says."""
        names = ("accuracy", "balanced_accuracy", "macro_f1", "roc_auc", "log_loss")
        return {name: getattr(self, name) for name in names}


@dataclass(frozen=True, kw_only=True)
class Referral:
    """As many of the least confident images handed to a person as a share allows, and what is left to the model."""

    at_most: float
    """The share that may be handed over; images of one confidence are handed over together or not at all."""
    threshold: float | None
    """Exactly the images handed over have a confidence below it; None when none is handed over."""
    handed_over: int
    kept: int
    accuracy: float
    """Accuracy on the images kept."""


@dataclass(frozen=True, kw_only=True)
class RiskCoverage:
    """Accuracy when the least confident images are handed to a person (El-Yaniv and Wiener 2010).

    Confidence is the probability of the predicted class (Geifman and El-Yaniv 2017). Images of one confidence are
    handed over in random order, of which the expected value is given.
    """

    area: float
    """Area under the risk-coverage curve: mean error of the n most confident images, over all n (Geifman et al. 2019).
    0 to 1, smaller is better; with a confidence that says nothing it is the error of all images."""
    curve: tuple[tuple[float, float], ...]
    """Share handed over and accuracy of the images kept, at most 100 points from 0 to 99 %."""
    referrals: tuple[Referral, ...]


def balanced_accuracy(labels: Labels, probabilities: Probabilities) -> float:
    """The mean recall of the classes that have an image, as in `score`, without the other scores."""
    right = probabilities.argmax(1) == labels
    counts = np.bincount(labels)
    present = counts > 0
    return float((np.bincount(labels, right)[present] / counts[present]).mean())


def score(labels: Labels, probabilities: Probabilities, classes: tuple[str, ...]) -> Scores:
    """All scores of a split; definitions are scikit-learn's, but that it halves the Brier score of two classes."""
    predicted = probabilities.argmax(1)
    every = np.arange(len(classes))
    present = np.isin(every, labels)
    counts = confusion_matrix(labels, predicted, labels=every)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UndefinedMetricWarning)  # undefined scores are given as None, not as 0
        precision, recall, f1, support = precision_recall_fscore_support(
            labels, predicted, labels=every, zero_division=np.nan
        )
    return Scores(
        images=len(labels),
        accuracy=float((predicted == labels).mean()),
        balanced_accuracy=float(recall[present].mean()),
        macro_f1=float(np.nan_to_num(f1[present]).mean()),
        roc_auc=_roc_auc(labels, probabilities, present),
        log_loss=float(log_losses(labels, probabilities).mean()),
        brier_score=brier_score(labels, probabilities),
        expected_calibration_error=expected_calibration_error(labels, probabilities),
        by_class=tuple(
            ClassScores(
                name=name,
                support=int(support[index]),
                precision=_defined(precision[index]) if present[index] else None,
                recall=_defined(recall[index]),
                f1=_defined(f1[index]) if present[index] else None,
            )
            for index, name in enumerate(classes)
        ),
        confusion=tuple(tuple(map(int, row)) for row in counts),
    )


def log_losses(labels: Labels, probabilities: Probabilities) -> Float64[np.ndarray, " images"]:
    """Minus the logarithm of each image's probability of its true class, which counts as 1e-15 at least."""
    of_true_class = probabilities[np.arange(len(labels)), labels].astype(np.float64)
    losses: np.ndarray = -np.log(np.clip(of_true_class, 1e-15, 1))
    return losses


def brier_score(labels: Labels, probabilities: Probabilities) -> float:
    """Mean over images of the squared distance to the one-hot label (Brier 1950): 0 to 2, smaller is better."""
    truth = np.eye(probabilities.shape[1])[labels]
    return float(((probabilities - truth) ** 2).sum(1).mean())


def reliability(labels: Labels, probabilities: Probabilities) -> list[tuple[float, float, int]]:
    """Mean confidence, accuracy and number of images of each of 15 equal bins of confidence that holds any."""
    confidence = probabilities.max(1)
    right = probabilities.argmax(1) == labels
    bins = np.minimum((confidence * BINS).astype(int), BINS - 1)
    used = np.unique(bins)
    return [(float(confidence[bins == b].mean()), float(right[bins == b].mean()), int((bins == b).sum())) for b in used]


def expected_calibration_error(labels: Labels, probabilities: Probabilities) -> float:
    """Mean gap between confidence and accuracy over 15 equal bins, weighted by images (Naeini et al. 2015)."""
    gaps = [count * abs(confidence - accuracy) for confidence, accuracy, count in reliability(labels, probabilities)]
    return float(sum(gaps) / len(labels))


def risk_coverage(labels: Labels, probabilities: Probabilities) -> RiskCoverage:
    """The risk-coverage curve of a split of at least one image, and its points at 0, 5, 10, 20, 30 and 50 %."""
    images = len(labels)
    confidence = probabilities.max(1)
    wrong = probabilities.argmax(1) != labels
    _, tie, sizes = np.unique(-confidence, return_inverse=True, return_counts=True)
    expected_wrong = np.repeat(np.bincount(tie, wrong) / sizes, sizes)  # the most confident first
    risk = np.cumsum(expected_wrong) / np.arange(1, images + 1)
    handed_over = np.unique(np.arange(100) * images // 100)
    return RiskCoverage(
        area=float(risk.mean()),
        curve=tuple((float(number / images), float(1 - risk[images - 1 - number])) for number in handed_over),
        referrals=tuple(_referral(confidence, ~wrong, percent) for percent in PERCENT_HANDED_OVER),
    )


def overfitting(training: float, validation: float) -> str:
    """A plain sentence on the gap between training and validation accuracy."""
    gap = f"{training:.1%} on training images against {validation:.1%} on validation images"
    if training - validation >= OVERFITTING_GAP:
        return f"The model overfits: {gap}. More images, stronger augmentation, dropout or weight decay may help."
    return f"No overfitting to speak of: {gap}."


def _referral(confidence: np.ndarray, right: np.ndarray, percent: int) -> Referral:
    least_kept = np.sort(confidence)[len(confidence) * percent // 100]
    kept = confidence >= least_kept
    return Referral(
        at_most=percent / 100,
        threshold=None if kept.all() else between(float(confidence[~kept].max()), float(least_kept)),
        handed_over=int((~kept).sum()),
        kept=int(kept.sum()),
        accuracy=float(right[kept].mean()),
    )


def between(low: float, high: float) -> float:
    """The number with the fewest decimals in the inner half of an interval: an answer's last digits may differ."""
    middle = (low + high) / 2
    rounded = (round(middle, digits) for digits in count(1))
    return next(number for number in rounded if abs(number - middle) <= (high - low) / 4)


def _roc_auc(labels: Labels, probabilities: Probabilities, present: np.ndarray) -> float | None:
    if present.sum() < 2:
        return None
    areas = [roc_auc_score(labels == index, probabilities[:, index]) for index in np.flatnonzero(present)]
    return float(np.mean(areas))


def _defined(value: float) -> float | None:
    return None if np.isnan(value) else float(value)
