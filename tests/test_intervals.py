import numpy as np
import pytest
from scipy.special import softmax
from sklearn.metrics import roc_auc_score

from training import intervals
from training.scores import score

CLASSES = ("a", "b", "c")


def split(seed: int, images: int, signal: float = 1.5) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = rng.choice(3, images, p=[0.6, 0.3, 0.1])
    logits = rng.normal(size=(images, 3)) + signal * np.eye(3)[labels]
    return labels, softmax(logits, axis=1).astype(np.float32)


def test_intervals_hold_the_scores_and_shrink_with_the_root_of_the_images() -> None:
    widths = []
    for images in (100, 1600):
        labels, probabilities = split(0, images)
        found = intervals.bootstrap(labels, probabilities, np.arange(images), CLASSES)
        scores = score(labels, probabilities, CLASSES)
        for name in ("accuracy", "balanced_accuracy", "macro_f1", "roc_auc"):
            low, high = getattr(found, name)
            assert low <= getattr(scores, name) <= high
        for scored in scores.by_class:
            low, high = found.recall[scored.name]
            assert low <= scored.recall <= high
        widths.append(found.accuracy[1] - found.accuracy[0])
    assert widths[0] / widths[1] == pytest.approx(4, rel=0.25)


def test_the_interval_of_accuracy_holds_the_truth_about_as_often_as_it_says() -> None:
    labels, probabilities = split(123, 200_000)
    truth = (probabilities.argmax(1) == labels).mean()
    held = []
    for seed in range(100):
        labels, probabilities = split(seed, 200)
        low, high = intervals.bootstrap(labels, probabilities, np.arange(200), CLASSES).accuracy
        held.append(low <= truth <= high)
    assert 0.89 <= np.mean(held) <= 0.99


def test_no_mistake_among_few_images_is_not_certainty() -> None:
    labels = np.repeat([0, 1, 2], [200, 62, 4])
    probabilities = np.eye(3, dtype=np.float32)[labels]
    found = intervals.bootstrap(labels, probabilities, np.arange(266), CLASSES)
    assert found.accuracy == (pytest.approx(0.986, abs=0.001), 1.0)
    assert found.recall["c"] == (pytest.approx(0.510, abs=0.001), 1.0)
    copies = np.repeat(np.arange(266), 10)
    grouped = intervals.bootstrap(labels[copies], probabilities[copies], copies, CLASSES)
    assert grouped.accuracy == pytest.approx(found.accuracy)


def test_images_of_one_group_count_as_one_draw() -> None:
    labels, probabilities = split(0, 300)
    copies = np.repeat(np.arange(300), 8)
    alone = intervals.bootstrap(labels, probabilities, np.arange(300), CLASSES).accuracy
    grouped = intervals.bootstrap(labels[copies], probabilities[copies], copies, CLASSES).accuracy
    naive = intervals.bootstrap(labels[copies], probabilities[copies], np.arange(len(copies)), CLASSES).accuracy
    assert grouped[1] - grouped[0] == pytest.approx(alone[1] - alone[0], rel=0.1)
    assert naive[1] - naive[0] < 0.5 * (grouped[1] - grouped[0])


def test_weighted_areas_are_those_of_scikit_learn_with_ties() -> None:
    labels, probabilities = split(0, 150)
    coarse = np.round(probabilities, 1)
    weights = np.random.default_rng(0).integers(0, 4, (5, 150)).astype(np.float64)
    areas = intervals._roc_auc(labels, coarse, weights)
    for row, drawn in zip(areas, weights, strict=True):
        for label in range(3):
            expected = roc_auc_score(labels == label, coarse[:, label], sample_weight=drawn)
            assert row[label] == pytest.approx(expected, abs=1e-12)


def test_a_class_that_is_absent_has_no_interval() -> None:
    labels, probabilities = split(0, 200)
    kept = labels != 2
    found = intervals.bootstrap(labels[kept], probabilities[kept], np.arange(kept.sum()), CLASSES)
    assert found.recall["c"] is None
    assert found.roc_auc is not None
    everything_a = np.tile(np.float32([0.8, 0.1, 0.1]), (kept.sum(), 1))
    assert intervals.bootstrap(labels[kept], everything_a, np.arange(kept.sum()), CLASSES).precision["b"] is None


def test_ten_thousand_images_take_seconds() -> None:
    labels, probabilities = split(0, 10_000)
    found = intervals.bootstrap(labels, probabilities, np.arange(10_000), CLASSES)
    assert found.accuracy[1] - found.accuracy[0] < 0.02
