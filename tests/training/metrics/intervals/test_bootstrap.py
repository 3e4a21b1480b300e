import dataclasses
import tracemalloc

import numpy as np
import pytest
from scipy.stats import binomtest
from sklearn.metrics import roc_auc_score

from tests.support.simulated_models import CLASSES, champion_and_challenger, split
from training.metrics.classification import score
from training.metrics.intervals import bootstrap, proportions, resampling


def test_intervals_hold_the_scores_and_shrink_with_the_root_of_the_images() -> None:
    widths = []
    for images in (100, 1600):
        labels, probabilities = split(0, images)
        found = bootstrap.bootstrap(labels, probabilities, np.arange(images), CLASSES)
        scores = score(labels, probabilities, CLASSES)
        for name in ("accuracy", "balanced_accuracy", "macro_f1", "roc_auc"):
            low, high = getattr(found, name)
            assert low <= getattr(scores, name) <= high
        for scored in scores.by_class:
            interval = found.recall[scored.name]
            assert interval is not None
            assert scored.recall is not None
            low, high = interval
            assert low <= scored.recall <= high
        widths.append(found.accuracy[1] - found.accuracy[0])
    assert widths[0] / widths[1] == pytest.approx(4, rel=0.25)


def test_the_difference_of_balanced_accuracy_alone_is_that_of_all_scores() -> None:
    labels, first = split(1, 300)
    _, second = split(2, 300)
    components = np.arange(300) // 3
    expected = bootstrap.paired(labels, first, second, components).balanced_accuracy
    assert bootstrap.balanced_accuracy_difference(labels, first, second, components) == expected
    assert expected[0] < expected[1]


def test_of_many_images_the_interval_of_balanced_accuracy_is_that_of_its_resamples() -> None:
    labels, probabilities = split(0, 3000)
    found = bootstrap.balanced_accuracy_interval(labels, probabilities, np.arange(3000))
    resampled = bootstrap.percentiles(
        resampling.replicates(labels, probabilities, np.arange(3000), 0).balanced_accuracy
    )
    assert found == pytest.approx(resampled, abs=0.002)


@pytest.mark.slow
def test_the_interval_of_accuracy_holds_the_truth_about_as_often_as_it_says() -> None:
    labels, probabilities = split(123, 200_000)
    truth = (probabilities.argmax(1) == labels).mean()
    held = []
    for seed in range(100):
        labels, probabilities = split(seed, 200)
        low, high = bootstrap.bootstrap(labels, probabilities, np.arange(200), CLASSES).accuracy
        held.append(low <= truth <= high)
    assert 0.89 <= np.mean(held) <= 0.99


def test_wilson_s_interval_is_scipy_s() -> None:
    for hits, draws in ((0, 3), (5, 5), (7, 20)):
        expected = binomtest(hits, draws).proportion_ci(method="wilson")
        found = proportions.wilson(np.array([hits / draws]), np.array([float(draws)]))
        assert found.ravel() == pytest.approx([expected.low, expected.high])


def test_no_mistake_among_few_images_is_not_certainty() -> None:
    labels = np.repeat([0, 1, 2], [200, 62, 4])
    probabilities = np.eye(3, dtype=np.float32)[labels]
    found = bootstrap.bootstrap(labels, probabilities, np.arange(266), CLASSES)
    assert found.accuracy == (pytest.approx(0.986, abs=0.001), 1.0)
    assert found.recall["c"] == (pytest.approx(0.510, abs=0.001), 1.0)
    of_classes = [1 - low for low, _ in filter(None, found.recall.values())]
    assert found.balanced_accuracy == (pytest.approx(1 - np.linalg.norm(of_classes) / 3), 1.0)
    assert bootstrap.balanced_accuracy_interval(labels, probabilities, np.arange(266)) == found.balanced_accuracy
    copies = np.repeat(np.arange(266), 10)
    grouped = bootstrap.bootstrap(labels[copies], probabilities[copies], copies, CLASSES)
    assert grouped.accuracy == pytest.approx(found.accuracy)
    assert grouped.balanced_accuracy == pytest.approx(found.balanced_accuracy)


def test_images_of_one_group_count_as_one_draw() -> None:
    labels, probabilities = split(0, 300)
    copies = np.repeat(np.arange(300), 8)
    alone = bootstrap.bootstrap(labels, probabilities, np.arange(300), CLASSES).accuracy
    grouped = bootstrap.bootstrap(labels[copies], probabilities[copies], copies, CLASSES).accuracy
    naive = bootstrap.bootstrap(labels[copies], probabilities[copies], np.arange(len(copies)), CLASSES).accuracy
    assert grouped[1] - grouped[0] == pytest.approx(alone[1] - alone[0], rel=0.1)
    assert naive[1] - naive[0] < 0.5 * (grouped[1] - grouped[0])


def test_weighted_areas_are_those_of_scikit_learn_with_ties() -> None:
    labels, probabilities = split(0, 150)
    coarse = np.round(probabilities, 1)
    weights = np.random.default_rng(0).integers(0, 4, (5, 150)).astype(np.float64)
    areas = resampling.roc_auc(labels, coarse, weights)
    for row, drawn in zip(areas, weights, strict=True):
        for label in range(3):
            expected = roc_auc_score(labels == label, coarse[:, label], sample_weight=drawn)
            assert row[label] == pytest.approx(expected, abs=1e-12)


def test_a_class_that_is_absent_has_no_interval() -> None:
    labels, probabilities = split(0, 200)
    kept = labels != 2
    found = bootstrap.bootstrap(labels[kept], probabilities[kept], np.arange(kept.sum()), CLASSES)
    assert found.recall["c"] is None
    assert found.roc_auc is not None
    assert (probabilities[kept].argmax(1) == 2).any()
    assert found.precision["c"] is None, "a share of no image would be 0 for whatever model"
    everything_a = np.tile(np.array([0.8, 0.1, 0.1], np.float32), (kept.sum(), 1))
    assert bootstrap.bootstrap(labels[kept], everything_a, np.arange(kept.sum()), CLASSES).precision["b"] is None


def test_ten_thousand_images_take_seconds() -> None:
    labels, probabilities = split(0, 10_000)
    found = bootstrap.bootstrap(labels, probabilities, np.arange(10_000), CLASSES)
    assert found.accuracy[1] - found.accuracy[0] < 0.02


NAMES = [field.name for field in dataclasses.fields(bootstrap.Differences)]


def test_a_model_does_not_differ_from_itself() -> None:
    labels, probabilities = split(0, 200)
    found = bootstrap.paired(labels, probabilities, probabilities.copy(), np.arange(200))
    assert [getattr(found, name) for name in NAMES if name != "accuracy"] == [(0.0, 0.0)] * 4
    low, high = found.accuracy
    assert -0.02 < low < 0 < high < 0.02, "of other images, they might"


def test_the_difference_changes_its_sign_with_the_order() -> None:
    labels, first, second = champion_and_challenger(0, 300)
    there = bootstrap.paired(labels, first, second, np.arange(300))
    back = bootstrap.paired(labels, second, first, np.arange(300))
    for name in NAMES:
        low, high = getattr(there, name)
        assert getattr(back, name) == pytest.approx((-high, -low))


def test_pairs_of_models_that_fail_on_the_same_images_are_compared_by_fewer_images() -> None:
    labels, first, second = champion_and_challenger(0, 400)
    alone = [bootstrap.bootstrap(labels, model, np.arange(400), CLASSES) for model in (first, second)]
    found = bootstrap.paired(labels, first, second, np.arange(400))
    for name in ("accuracy", "balanced_accuracy", "macro_f1", "roc_auc"):
        low, high = getattr(found, name)
        unpaired = np.hypot(*(np.ptp(getattr(model, name)) for model in alone))
        assert high - low < 0.75 * unpaired, name


@pytest.mark.slow
def test_the_interval_of_a_difference_holds_the_truth_about_as_often_as_it_says() -> None:
    labels, first, second = champion_and_challenger(123, 200_000)
    scores = [score(labels, model, CLASSES) for model in (first, second)]
    truth = {name: getattr(scores[1], name) - getattr(scores[0], name) for name in NAMES}
    assert truth["accuracy"] < -0.01
    held = []
    for seed in range(100):
        labels, first, second = champion_and_challenger(seed, 200)
        found = bootstrap.paired(labels, first, second, np.arange(200))
        held.append([getattr(found, name)[0] <= truth[name] <= getattr(found, name)[1] for name in NAMES])
    shares = np.mean(held, axis=0)
    assert (shares >= 0.88).all()
    assert (shares <= 0.99).all()


def test_pairs_too_are_drawn_by_group() -> None:
    labels, first, second = champion_and_challenger(0, 300)
    copies = np.repeat(np.arange(300), 8)
    alone = bootstrap.paired(labels, first, second, np.arange(300))
    grouped = bootstrap.paired(labels[copies], first[copies], second[copies], copies)
    for name in NAMES:
        assert np.ptp(getattr(grouped, name)) == pytest.approx(np.ptp(getattr(alone, name)), rel=0.1)


def test_one_class_alone_has_no_difference_of_roc_auc() -> None:
    labels, first, second = champion_and_challenger(0, 100)
    kept = labels == 0
    found = bootstrap.paired(labels[kept], first[kept], second[kept], np.arange(kept.sum()))
    assert found.roc_auc is None
    assert np.isfinite(found.log_loss).all()


def test_a_resample_draws_as_many_as_there_are_with_replacement() -> None:
    weights = np.concatenate(list(resampling.resamples(np.arange(50), np.random.default_rng(0))))
    assert weights.shape == (1000, 50)
    assert (weights.sum(1) == 50).all()
    assert weights.mean(0) == pytest.approx(1, abs=0.15)
    assert weights.var() == pytest.approx(1 - 1 / 50, rel=0.05), "that of a multinomial distribution"


def test_many_classes_need_no_confusion_matrix_of_each_resample() -> None:
    """Of 1,000 resamples of 150 classes these would be 180 MB, and of 1,000 classes 8 GB."""
    count, images = 150, 450
    rng = np.random.default_rng(0)
    labels = rng.permutation(np.arange(images) % count)
    probabilities = rng.random((images, count), np.float32)
    probabilities[np.arange(images), labels] += 0.5
    probabilities /= probabilities.sum(1, keepdims=True)
    tracemalloc.start()
    found = bootstrap.bootstrap(labels, probabilities, np.arange(images), tuple(map(str, range(count))))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 30 * 2**20
    low, high = found.balanced_accuracy
    assert low < (probabilities.argmax(1) == labels).mean() < high
