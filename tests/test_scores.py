import numpy as np
import pytest
from sklearn.metrics import (
    accuracy_score,
    balanced_accuracy_score,
    classification_report,
    f1_score,
    log_loss,
    roc_auc_score,
)

from training.scores import log_losses, overfitting, score

CLASSES = ("a", "b", "c")


def random_split(seed: int, images: int = 200) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 3, images)
    logits = rng.normal(size=(images, 3)) + 1.5 * np.eye(3)[labels]
    return labels, (np.exp(logits) / np.exp(logits).sum(1, keepdims=True)).astype(np.float32)


@pytest.mark.parametrize("seed", range(5))
def test_scores_are_those_of_scikit_learn(seed: int) -> None:
    labels, probabilities = random_split(seed)
    predicted = probabilities.argmax(1)
    scores = score(labels, probabilities, CLASSES)
    assert scores.accuracy == pytest.approx(accuracy_score(labels, predicted))
    assert scores.balanced_accuracy == pytest.approx(balanced_accuracy_score(labels, predicted))
    assert scores.macro_f1 == pytest.approx(f1_score(labels, predicted, average="macro"))
    exact = probabilities / probabilities.sum(1, keepdims=True, dtype=np.float64)
    assert scores.log_loss == pytest.approx(log_loss(labels, exact), rel=1e-5)
    assert scores.roc_auc == pytest.approx(roc_auc_score(labels, probabilities, multi_class="ovr"), abs=1e-3)
    reference = classification_report(labels, predicted, target_names=CLASSES, output_dict=True)
    for scored in scores.by_class:
        expected = reference[scored.name]
        got = (scored.precision, scored.recall, scored.f1, scored.support)
        assert got == pytest.approx(
            (expected["precision"], expected["recall"], expected["f1-score"], expected["support"])
        )


def test_a_hand_worked_case() -> None:
    labels = np.array([0, 0, 0, 1])
    probabilities = np.float32([[0.9, 0.1], [0.6, 0.4], [0.3, 0.7], [0.2, 0.8]])
    scores = score(labels, probabilities, ("a", "b"))
    assert scores.accuracy == 0.75
    assert scores.balanced_accuracy == pytest.approx((2 / 3 + 1) / 2)
    assert scores.confusion == ((2, 1), (0, 1))
    assert scores.roc_auc == 1.0
    assert scores.macro_f1 == pytest.approx((0.8 + 2 / 3) / 2)
    assert log_losses(labels, probabilities) == pytest.approx(-np.log([0.9, 0.6, 0.3, 0.8]))
    assert scores.log_loss == pytest.approx(-np.log(0.9 * 0.6 * 0.3 * 0.8) / 4)


def test_a_class_that_the_split_does_not_hold_is_none_and_not_zero() -> None:
    labels, probabilities = random_split(0)
    kept = labels != 2
    scores = score(labels[kept], probabilities[kept], CLASSES)
    absent = scores.by_class[2]
    assert (probabilities[kept].argmax(1) == 2).any()
    assert (absent.support, absent.precision, absent.recall, absent.f1) == (0, None, None, None)
    present = [scored.recall for scored in scores.by_class[:2]]
    assert scores.balanced_accuracy == pytest.approx(np.mean(present))
    assert scores.roc_auc is not None


def test_one_class_alone_has_no_roc_curve_and_a_class_never_predicted_no_precision() -> None:
    labels = np.zeros(4, np.int64)
    probabilities = np.float32([[1.0, 0.0]] * 4)
    scores = score(labels, probabilities, ("a", "b"))
    assert scores.roc_auc is None
    assert scores.accuracy == 1
    assert scores.by_class[1].precision is None
    assert scores.log_loss == 0


def test_overfitting_is_said_when_the_gap_says_so() -> None:
    assert overfitting(0.9, 0.7).startswith("The model overfits: 90.0% on training images against 70.0%")
    assert overfitting(0.9, 0.89).startswith("No overfitting")
