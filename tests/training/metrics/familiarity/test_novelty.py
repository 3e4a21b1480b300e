"""Novelty against scikit-learn's distance, limits by hand, and images that were planted."""

import numpy as np
import pytest
from sklearn.covariance import LedoitWolf

from training.metrics.familiarity import novelty
from training.metrics.familiarity.novelty import choose, fewest, fit, novelty_facts, novelty_warnings, unit


def clusters(rng: np.random.Generator, images: int, features: int = 24) -> tuple[np.ndarray, np.ndarray]:
    """Embeddings of three classes, and their labels."""
    labels = np.arange(images) % 3
    means = 4 * np.eye(3, features)
    return (means[labels] + rng.normal(size=(images, features))).astype(np.float32), labels


def test_the_distance_is_that_of_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    (embeddings, labels), (others, _) = clusters(rng, 300), clusters(rng, 50)
    units = unit(embeddings)
    means = np.stack([units[labels == label].mean(0) for label in range(3)])
    witness = LedoitWolf(assume_centered=True).fit(units - means[labels])
    squares = np.min([witness.mahalanobis(unit(others) - mean) for mean in means], 0)
    assert fit(embeddings, labels).novelty(others) == pytest.approx(np.sqrt(squares / 24), rel=1e-4)


def test_beyond_64_directions_the_others_have_their_mean_variance(monkeypatch: pytest.MonkeyPatch) -> None:
    """By hand, for 2 of 4 features: u = (1, 0, 0, 0), one class around it, variances 0.04, 0.02, 0.01, 0.03."""
    monkeypatch.setattr(novelty, "DIRECTIONS", 2)
    monkeypatch.setattr(novelty, "unit", lambda values: values.astype(np.float64))
    monkeypatch.setattr(novelty, "ledoit_wolf", lambda rows, assume_centered: (np.diag([0.04, 0.02, 0.01, 0.03]), 0.0))
    detector = fit(np.array([[1, 0, 0, 0]], np.float32), np.array([0]))
    at = np.array([[0.6, 0, 0, 0.8], [0, 1, 0, 0]], np.float32)
    expected = [(0.16 / 0.04 + 0.64 / 0.03) / 4, (1 / 0.04 + 1 / 0.015) / 4]
    assert detector.novelty(at) ** 2 == pytest.approx(np.array(expected), rel=1e-4)


def test_limits_by_hand() -> None:
    values = np.arange(1, 40, dtype=np.float32)
    chosen = choose(values, 0.05)
    assert chosen is not None
    assert 38 < chosen.threshold < 39, "the 38th of 39: 40 * 0.95 = 38"
    assert (chosen.false_alarms, chosen.images) == (0.05, 39)
    assert choose(values[:18], 0.05) is None
    last = choose(values[:19], 0.05)
    assert last is not None
    assert last.threshold >= 19
    assert fewest(0.05) == 19
    assert fewest(0.1) == 9
    same = choose(np.ones(30, np.float32), 0.05)
    assert same is not None
    assert not same.unfamiliar(np.ones(30, np.float32)).any()


def test_planted_images_stand_out_and_clean_ones_do_not() -> None:
    rng = np.random.default_rng(1)
    train, labels = clusters(rng, 600)
    detector = fit(train, labels)
    chosen = choose(detector.novelty(clusters(rng, 400)[0]), 0.05)
    assert chosen is not None
    clean = detector.novelty(clusters(rng, 2000)[0])
    planted = detector.novelty((rng.normal(size=(100, 24)) + 5 * np.eye(24)[10]).astype(np.float32))
    facts = novelty_facts(chosen, clean, np.arange(2000), {"planted": planted, "clean": clean[:100]})
    assert facts is not None
    assert 0.03 < facts["measured"]["value"] < 0.075
    assert facts["measured"]["interval"][0] < 0.05
    assert facts["unlike"][0]["roc_auc"] > 0.98
    assert facts["unlike"][0]["unfamiliar"] > 0.9
    [warned] = novelty_warnings(facts, "test images")
    assert "images of clean are unfamiliar" in warned
    shifted = novelty_facts(chosen, clean + 1, np.arange(2000), {})
    [warned] = novelty_warnings(shifted, "test images")
    assert "they differ from the validation images" in warned


def test_embeddings_of_zeros_are_a_number() -> None:
    train, labels = clusters(np.random.default_rng(2), 100)
    assert np.isfinite(fit(train, labels).novelty(np.zeros((2, 24), np.float32))).all()
    constant = fit(np.ones((20, 8), np.float32), np.zeros(20, np.int64))
    assert np.isfinite(constant.novelty(np.eye(8, dtype=np.float32))).all()
