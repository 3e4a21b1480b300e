"""Novelty against scikit-learn's distance, limits by hand, and images that were planted."""

import numpy as np
import pytest
from sklearn.covariance import LedoitWolf

from training.metrics.familiarity import novelty
from training.metrics.familiarity.novelty import (
    LEAST_SPREAD,
    choose,
    fewest,
    fit,
    novelty_facts,
    novelty_warnings,
    spread,
    unit,
    why_none,
)


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
    values, alone = np.arange(1, 101, dtype=np.float32), np.arange(100)
    chosen = choose(values, alone, 0.05)
    assert chosen is not None
    assert 99 < chosen.threshold < 100, "of 100 at 95 %, at most 97 are below with 88.2 %, at most 98 with 96.3 %"
    assert (chosen.false_alarms, chosen.images) == (0.05, 100)
    assert choose(values[:44], alone[:44], 0.05) is None, "0.95 ** 44 = 0.105"
    last = choose(values[:45], alone[:45], 0.05)
    assert last is not None
    assert last.threshold >= 45
    assert (fewest(0.05), fewest(0.1)) == (45, 22)
    same = choose(np.ones(50, np.float32), alone[:50], 0.05)
    assert same is not None
    assert not same.unfamiliar(np.ones(50, np.float32)).any()


def test_images_of_a_group_count_as_one() -> None:
    values, pairs = np.repeat(np.arange(1, 101, dtype=np.float32), 2), np.repeat(np.arange(100), 2)
    chosen = choose(values, pairs, 0.05)
    assert chosen is not None
    assert 99 < chosen.threshold < 100, "as of 100 images that each stand there once"
    assert choose(values, np.arange(200) // 5, 0.05) is None
    assert why_none(np.arange(200) // 5, 0.05) == (
        "200 validation images of 40 groups are too few for `--unfamiliar 0.05`, which needs 45: the model says of no "
        "image that it is unfamiliar. They are enough for `--unfamiliar 0.06`."
    )


@pytest.mark.parametrize("images", [1, 2, 10, 22, 40, 44, 200])
def test_a_share_is_named_for_which_the_images_are_enough(images: int) -> None:
    alone = np.arange(images)
    enough = float(why_none(alone, 0.001).split()[-1].rstrip("`."))
    assert choose(alone.astype(np.float32), alone, enough) is not None
    assert choose(alone.astype(np.float32), alone, enough - 0.01) is None


def test_features_that_do_not_differ_are_no_novelty() -> None:
    labels = np.arange(60) % 3
    classes = np.eye(3, 8, dtype=np.float32)[labels]
    assert spread(np.zeros((60, 8), np.float32), labels) == spread(classes, labels) == 0
    assert spread(classes + np.float32(0.1) * np.arange(60, dtype=np.float32)[:, None], labels) > LEAST_SPREAD
    assert why_none(np.arange(60), 0.05).startswith("The features of all images of a class are the same")


@pytest.mark.parametrize("images", [45, 100, 316])
def test_nine_of_ten_validation_splits_keep_the_share(images: int) -> None:
    """Of uniform values the share above a limit is 1 less the limit."""
    rng, alone = np.random.default_rng(0), np.arange(images)
    chosen = [choose(rng.uniform(size=images).astype(np.float32), alone, 0.05) for _ in range(2000)]
    kept = np.mean([1 - limit.threshold <= 0.05 for limit in chosen if limit is not None])
    assert len(chosen) == 2000
    assert 0.88 < kept < 0.99, "at least 0.9; whole numbers of images leave more"


def test_planted_images_stand_out_and_clean_ones_do_not() -> None:
    rng = np.random.default_rng(1)
    train, labels = clusters(rng, 600)
    detector = fit(train, labels)
    chosen = choose(detector.novelty(clusters(rng, 400)[0]), np.arange(400), 0.05)
    assert chosen is not None
    clean = detector.novelty(clusters(rng, 2000)[0])
    planted = detector.novelty((rng.normal(size=(100, 24)) + 5 * np.eye(24)[10]).astype(np.float32))
    facts = novelty_facts(chosen, clean, np.arange(2000), {"planted": planted, "clean": clean[:100]})
    assert facts is not None
    assert 0.02 < facts["measured"]["value"] < 0.05
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
