import numpy as np
import pytest
from sklearn.datasets import load_digits
from sklearn.model_selection import StratifiedKFold, cross_val_predict
from sklearn.neighbors import KNeighborsClassifier

from training.folds.label_issues import as_frequent, find_label_issues, mislabelled


def test_a_case_worked_by_hand() -> None:
    """Classes a, b, c give their own images 0.5875, 0.7 and 0.5 on average."""
    probabilities = np.array(
        [
            [0.90, 0.05, 0.05],  # a: confident is a
            [0.25, 0.75, 0.00],  # a: confident is b
            [0.50, 0.30, 0.20],  # a: none
            [0.70, 0.30, 0.00],  # a: a
            [0.00, 0.90, 0.10],  # b: b
            [0.45, 0.50, 0.05],  # b: none
            [0.00, 0.45, 0.55],  # c: c
            [0.65, 0.00, 0.35],  # c: a
            [0.00, 0.40, 0.60],  # c: c
        ],
        np.float32,
    )
    labels = np.array([0, 0, 0, 0, 1, 1, 2, 2, 2])
    # A third of the four of a show b, a third of the three of c show a.
    assert mislabelled(labels, probabilities).tolist() == [[0, 1, 0], [0, 0, 0], [1, 0, 0]]
    issues = find_label_issues(labels, probabilities)
    assert [(issue.row, issue.suggested) for issue in issues] == [(1, 1), (7, 0)]
    assert [issue.score for issue in issues] == pytest.approx([0.75, 0.65])


def test_where_no_class_is_confident_as_many_are_wrong_as_elsewhere() -> None:
    """Of two images of a that a class is confident of, one shows b: two of all four, those with most for b."""
    probabilities = np.array([[0.9, 0.1], [0.2, 0.8], [0.4, 0.6], [0.45, 0.55], [0.3, 0.7]], np.float32)
    issues = find_label_issues(np.array([0, 0, 0, 0, 1]), probabilities)
    assert [(issue.row, issue.suggested) for issue in issues] == [(1, 1), (2, 1)]


def test_answers_of_balanced_training_are_brought_to_the_frequencies_of_the_data() -> None:
    """Bayes' rule for two normal classes of which one is nine times as frequent; answers as if both were alike."""
    rng = np.random.default_rng(0)
    labels = (rng.random(20_000) < 0.1).astype(np.int64)
    evidence = rng.normal(labels * 2.0 - 1.0, 1.0) * 2  # log of the likelihood ratio
    balanced, true = (1 / (1 + np.exp(-(evidence + prior))) for prior in (0.0, np.log(1 / 9)))
    answers = np.stack([1 - balanced, balanced], axis=1).astype(np.float32)
    assert np.abs(as_frequent(labels, answers)[:, 1] - true).mean() < 0.005
    assert np.abs(balanced - true).mean() > 0.1


def test_answers_that_are_all_right_stay_finite() -> None:
    answers = np.eye(3, dtype=np.float32)[[0, 1, 2, 0]]
    found = as_frequent(np.array([0, 1, 2, 0]), answers)
    assert np.isfinite(found).all()
    assert found.argmax(1).tolist() == [0, 1, 2, 0]


def test_a_class_without_an_image_is_never_suggested() -> None:
    probabilities = np.array([[0.6, 0.1, 0.3], [0.1, 0.3, 0.6]], np.float32)
    assert find_label_issues(np.array([0, 1]), probabilities) == []


@pytest.mark.parametrize("planted", [0, 60])
def test_planted_labels_are_found_and_clean_ones_left_alone(planted: int) -> None:
    """On real digits, with a kept library's out-of-fold answers; 60 of 1,200 labels are changed."""
    digits, rng = load_digits(), np.random.default_rng(0)
    features, truth = digits.data[:1200], digits.target[:1200].astype(np.int64)
    labels = truth.copy()
    changed = rng.choice(len(labels), planted, replace=False)
    labels[changed] = (labels[changed] + rng.integers(1, 10, planted)) % 10
    folds = StratifiedKFold(5, shuffle=True, random_state=0)
    answers = cross_val_predict(KNeighborsClassifier(10), features, labels, cv=folds, method="predict_proba")
    issues = find_label_issues(labels, answers.astype(np.float32))
    if not planted:
        assert len(issues) <= 0.01 * len(labels)
        return
    rows = [issue.row for issue in issues]
    assert np.isin(rows[:50], changed).mean() >= 0.9
    assert np.isin(changed, rows).mean() >= 0.75
    found = [issue for issue in issues if issue.row in changed]
    assert np.mean([issue.suggested == truth[issue.row] for issue in found]) >= 0.8
