"""Decisions of two models on the same images."""

import numpy as np
import pytest

from serving.contract.card.decisions import OperatingPoint
from training.metrics.decision_comparison import compare_decisions, rate_difference
from training.metrics.intervals.proportions import newcombe


def point(label: str, threshold: float) -> OperatingPoint:
    return OperatingPoint(label=label, score="sensitivity", target=0.9, threshold=threshold)


def pairs(both: int, only_a: int, only_b: int, neither: int) -> tuple[np.ndarray, np.ndarray]:
    """Which images each of two models decides rightly."""
    kinds = np.repeat([[True, True], [True, False], [False, True], [False, False]], (both, only_a, only_b, neither), 0)
    return kinds[:, 0], kinds[:, 1]


def test_the_interval_is_newcombe_s() -> None:
    """Airway hyper-responsiveness before and after transplantation (Bentur et al. 2009), as Fagerland et al. (2014)."""
    after, before = pairs(1, 7, 1, 12)
    assert newcombe(after, before, 21) == pytest.approx((-0.507, -0.026), abs=5e-4)


def test_few_images_that_both_decide_alike_are_no_certainty_and_many_are_nearly() -> None:
    a, _ = pairs(6, 0, 0, 0)
    few = rate_difference(a, a, np.arange(6))
    assert few is not None
    assert (few.value, few.p_value, few.better) == (0, 1, None)
    assert few.interval[0] < -0.3
    assert few.interval[1] > 0.3
    grouped = rate_difference(*pairs(900, 80, 10, 10), np.arange(1000) // 50)
    alone = rate_difference(*pairs(900, 80, 10, 10), np.arange(1000))
    assert grouped is not None
    assert alone is not None
    assert (alone.better, alone.only_a_right, alone.only_b_right) == ("A", 80, 10)
    assert alone.value == pytest.approx(-0.07)
    assert grouped.interval[0] < alone.interval[0] < -0.07 < alone.interval[1] < grouped.interval[1]


def test_classes_that_both_decide_for_are_compared_each_by_its_own_threshold() -> None:
    labels = np.array([0, 0, 0, 0, 1, 1, 1, 1, 1, 1])
    first = np.array([0.9, 0.8, 0.7, 0.2, 0.6, 0.1, 0.1, 0.1, 0.1, 0.1], np.float32)
    a, b = np.stack([first, 1 - first], 1), np.stack([first, 1 - first], 1)
    points = [point("x", 0.5), point("y", 0.5)], [point("x", 0.15)]
    [found] = compare_decisions(points, (a, b), ("x", "y"), labels, np.arange(10))
    assert found.sensitivity is not None
    assert found.specificity is not None
    assert (found.label, found.sensitivity.a, found.sensitivity.b, found.sensitivity.images) == ("x", 0.75, 1.0, 4)
    assert (found.specificity.a, found.specificity.b, found.specificity.images) == (5 / 6, 5 / 6, 6)
    assert found.sentence.startswith("x, decisions of B less those of A: sensitivity +0.250 (")
    [of_others] = compare_decisions(points, (a[4:], b[4:]), ("x", "y"), labels[4:], np.arange(6))
    assert of_others.sensitivity is None
    assert "sensitivity" not in of_others.sentence
