import json
from dataclasses import asdict

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

from training.metrics.classification import (
    RiskCoverage,
    balanced_accuracy,
    log_losses,
    overfitting,
    reliability,
    risk_coverage,
    score,
)

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
    probabilities = np.array([[0.9, 0.1], [0.6, 0.4], [0.3, 0.7], [0.2, 0.8]], np.float32)
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
    assert scores.balanced_accuracy == pytest.approx(np.mean([recall for recall in present if recall is not None]))
    assert scores.roc_auc is not None


def test_one_class_alone_has_no_roc_curve_and_a_class_never_predicted_no_precision() -> None:
    labels = np.zeros(4, np.int64)
    probabilities = np.array([[1.0, 0.0]] * 4, np.float32)
    scores = score(labels, probabilities, ("a", "b"))
    assert scores.roc_auc is None
    assert scores.accuracy == 1
    assert scores.by_class[1].precision is None
    assert scores.log_loss == 0


EXTREMES = {
    "all predictions of one class": ([0, 1, 2, 0], [[0.8, 0.1, 0.1]] * 4),
    "the same probability for every class": ([0, 1, 2, 0], [[1 / 3] * 3] * 4),
    "certain and right": ([0, 1, 2], np.eye(3)),
    "certain and wrong": ([0, 1, 2], np.eye(3)[[1, 2, 0]]),
    "a class without images that is predicted": ([0, 1, 0, 1], np.eye(3)[[0, 2, 2, 1]]),
    "one class alone": ([1, 1], [[0.0, 1.0, 0.0], [0.5, 0.25, 0.25]]),
    "one image, certain and wrong": ([0], [[0.0, 0.0, 1.0]]),
}


@pytest.mark.parametrize("name", EXTREMES)
def test_extremes_give_finite_scores_and_none_where_there_is_none(name: str) -> None:
    labels, probabilities = np.array(EXTREMES[name][0]), np.array(EXTREMES[name][1], np.float32)
    scores = score(labels, probabilities, CLASSES)
    json.dumps([asdict(scores), reliability(labels, probabilities)], allow_nan=False)
    predicted = probabilities.argmax(1)
    held = [label for label in range(3) if label in labels]
    recalls = [float((predicted[labels == label] == label).mean()) for label in held]
    assert scores.balanced_accuracy == pytest.approx(np.mean(recalls))
    assert scores.macro_f1 == pytest.approx(f1_score(labels, predicted, labels=held, average="macro", zero_division=0))
    assert (scores.roc_auc is None) == (len(held) == 1)
    for label, scored in enumerate(scores.by_class):
        assert (scored.recall is None) == (scored.f1 is None) == (label not in labels)
        assert (scored.precision is None) == (label not in predicted or label not in labels)
    of_true_class = probabilities[np.arange(len(labels)), labels].astype(np.float64)
    assert scores.log_loss == pytest.approx(-np.log(np.maximum(of_true_class, 1e-15)).mean())


def test_chance_is_worth_half_an_area_and_a_class_never_found_counts_as_zero() -> None:
    labels, probabilities = (
        np.array(EXTREMES["all predictions of one class"][0]),
        np.array([[0.8, 0.1, 0.1]] * 4, np.float32),
    )
    scores = score(labels, probabilities, CLASSES)
    assert scores.roc_auc == 0.5
    assert scores.balanced_accuracy == pytest.approx(1 / 3)
    assert scores.macro_f1 == pytest.approx((2 / 3 + 0 + 0) / 3)
    assert (scores.by_class[1].precision, scores.by_class[1].recall) == (None, 0)


def answers(*given: tuple[float, bool]) -> tuple[np.ndarray, np.ndarray]:
    """Labels and probabilities of two classes from each answer's confidence and whether it is right."""
    confidence, right = np.array([row[0] for row in given], np.float32), np.array([row[1] for row in given])
    return (~right).astype(np.int64), np.stack([confidence, 1 - confidence], axis=1)


def handed_over(found: RiskCoverage) -> dict[float, tuple[float | None, int, int, object]]:
    """Threshold, images handed over, images kept and their accuracy by the share asked for."""
    return {
        point.at_most: (point.threshold, point.handed_over, point.kept, pytest.approx(point.accuracy))
        for point in found.referrals
    }


def test_a_hand_worked_risk_coverage_curve_with_a_tie() -> None:
    given = [(0.9, True), (0.8, False), (0.8, True), (0.7, True), (0.6, False)]
    found = risk_coverage(*answers(*given))
    risks = [0, 0.5 / 2, 1 / 3, 1 / 4, 2 / 5]  # of the 1, 2, ... 5 most confident; half an error of two that tie
    assert found.area == pytest.approx(sum(risks) / 5)
    assert np.array(found.curve) == pytest.approx(
        np.array([(0, 3 / 5), (0.2, 3 / 4), (0.4, 2 / 3), (0.6, 0.75), (0.8, 1)])
    )
    assert handed_over(found) == {
        0.0: (None, 0, 5, 3 / 5),
        0.05: (None, 0, 5, 3 / 5),
        0.1: (None, 0, 5, 3 / 5),
        0.2: (0.65, 1, 4, 3 / 4),
        0.3: (0.65, 1, 4, 3 / 4),
        0.5: (0.75, 2, 3, 2 / 3),
    }
    assert risk_coverage(*answers(*reversed(given))) == found, "the order of the images says nothing"


def test_images_of_one_confidence_are_handed_over_together_or_not_at_all() -> None:
    found = risk_coverage(*answers(*[(0.6, False)] * 3, *[(0.9, True)] * 7))
    assert handed_over(found) == {
        0.0: (None, 0, 10, 0.7),
        0.05: (None, 0, 10, 0.7),
        0.1: (None, 0, 10, 0.7),
        0.2: (None, 0, 10, 0.7),
        0.3: (0.8, 3, 7, 1.0),
        0.5: (0.8, 3, 7, 1.0),
    }


def test_a_confidence_that_says_nothing_is_worth_as_much_as_chance() -> None:
    found = risk_coverage(*answers(*[(0.7, True), (0.7, False), (0.7, True), (0.7, True)] * 25))
    assert found.area == pytest.approx(0.25)
    assert {round(accuracy, 12) for _, accuracy in found.curve} == {0.75}
    assert {(point.threshold, point.kept) for point in found.referrals} == {(None, 100)}


def test_a_perfect_ranking_leaves_no_mistake_behind() -> None:
    found = risk_coverage(*answers(*[(0.6 + number / 100, number >= 2) for number in range(10)]))
    assert found.area == pytest.approx((1 / 9 + 2 / 10) / 10)
    assert [point.accuracy for point in found.referrals] == pytest.approx([0.8, 0.8, 8 / 9, 1, 1, 1])


def test_certain_answers_have_a_threshold_below_one() -> None:
    nearly = float(np.nextafter(np.float32(1), np.float32(0)))
    for less in (0.5, nearly):
        point = risk_coverage(*answers((1.0, True), (1.0, True), (less, False), (1.0, False))).referrals[-1]
        assert point.threshold is not None
        assert less < point.threshold < 1
        assert (point.handed_over, point.accuracy) == (1, pytest.approx(2 / 3))


@pytest.mark.parametrize("right", [True, False])
def test_one_image_is_never_handed_over(right: bool) -> None:
    found = risk_coverage(*answers((1.0, right)))
    assert (found.area, found.curve) == (1 - right, ((0.0, float(right)),))
    assert {(point.threshold, point.kept, point.accuracy) for point in found.referrals} == {(None, 1, right)}


@pytest.mark.parametrize("decimals", [2, 7])
def test_the_services_rule_hands_over_exactly_what_the_table_says(decimals: int) -> None:
    labels, probabilities = random_split(1, images=12_345)
    probabilities = probabilities.round(decimals)
    found = risk_coverage(labels, probabilities)
    assert 0 <= found.area <= 1
    assert len(found.curve) == 100
    assert found.curve[0] == (0, pytest.approx((probabilities.argmax(1) == labels).mean()))
    assert np.diff([share for share, _ in found.curve]) == pytest.approx(0.01, abs=1e-4)
    confidences = [float(value) for value in probabilities.max(1)]
    for point in found.referrals[1:]:
        assert point.threshold is not None
        below = np.array([confidence < point.threshold for confidence in confidences])
        assert below.sum() == point.handed_over
        assert (~below).sum() == point.kept
        assert point.accuracy == pytest.approx((probabilities.argmax(1) == labels)[~below].mean())
        kept = [confidence for confidence in confidences if confidence > point.threshold]
        next_tie = confidences.count(min(kept))
        assert point.handed_over <= point.at_most * len(labels) < point.handed_over + next_tie


def test_overfitting_is_said_when_the_gap_says_so() -> None:
    assert overfitting(0.9, 0.7).startswith("The model overfits: 90.0% on training images against 70.0%")
    assert overfitting(0.9, 0.89).startswith("No overfitting")


def test_a_rank_is_greater_where_the_score_is_better() -> None:
    labels, probabilities = random_split(0)
    better, worse = score(labels, probabilities, CLASSES), score(labels, probabilities[::-1].copy(), CLASSES)
    for by in ("accuracy", "balanced_accuracy", "macro_f1", "roc_auc", "log_loss"):
        assert better.rank(by) > worse.rank(by)
    assert better.rank("log_loss")[0] == -better.log_loss
    sharper = score(labels, np.sqrt(probabilities) / np.sqrt(probabilities).sum(1, keepdims=True), CLASSES)
    assert sharper.rank("accuracy")[0] == better.rank("accuracy")[0]
    assert (sharper.rank("accuracy") > better.rank("accuracy")) == (sharper.log_loss < better.log_loss)
    undefined = score(np.zeros(3, np.int64), probabilities[:3], CLASSES)
    assert undefined.roc_auc is None
    assert undefined.rank("roc_auc") < worse.rank("roc_auc")


def test_balanced_accuracy_alone_is_that_of_all_scores() -> None:
    rng = np.random.default_rng(0)
    labels, probabilities = rng.choice([0, 2, 3], 500), rng.dirichlet(np.ones(5), 500).astype(np.float32)
    whole = score(labels, probabilities, tuple("abcde"))
    assert balanced_accuracy(labels, probabilities) == pytest.approx(whole.balanced_accuracy, abs=1e-15)
