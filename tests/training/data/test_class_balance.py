import numpy as np
import pytest

from training.data import class_balance


def test_weights_are_inverse_frequencies_with_mean_one_over_the_images() -> None:
    labels = np.array([0, 0, 0, 1])
    assert class_balance.weights(labels, 2).tolist() == [4 / 6, 2.0]
    many = np.random.default_rng(0).choice(7, 1000, p=[0.5, 0.2, 0.1, 0.1, 0.05, 0.03, 0.02])
    weights = class_balance.weights(many, 7)
    assert weights[many].mean() == pytest.approx(1)
    assert weights * np.bincount(many) == pytest.approx(1000 / 7)


def test_classes_are_drawn_equally_often_and_images_of_a_class_too() -> None:
    labels = np.repeat([0, 1, 2], [70, 25, 6])
    order = class_balance.order(labels, np.random.default_rng(0))
    assert len(order) == 101
    assert sorted(np.bincount(labels[order])) == [33, 34, 34]
    for label in range(3):
        times = np.bincount(order, minlength=101)[labels == label]
        assert times.max() - times.min() <= 1
    assert np.abs(np.bincount(labels[order[:50]]) - 50 / 3).max() < 10, "mixed, not one class after the other"


def test_the_order_follows_from_the_generator() -> None:
    labels = np.repeat([0, 1], [9, 2])
    first, same, other = (class_balance.order(labels, np.random.default_rng(seed)) for seed in (3, 3, 4))
    assert np.array_equal(first, same)
    assert not np.array_equal(first, other)
