import math

import numpy as np
import pytest
from scipy.stats import t

from training.study.sample_size import more_images, more_seeds, more_tested

SIZES = (10, 40, 160, 640)


def planted(noise: float, floor: float = 0.05, scale: float = 2.0, seeds: int = 5) -> dict[int, dict[int, float]]:
    """Scores of which the error is floor + scale / sqrt(n)."""
    rng = np.random.default_rng(0)
    return {
        seed: {n: 1 - floor - scale / math.sqrt(n) + noise * rng.normal() for n in SIZES if n > 10}
        for seed in range(seeds)
    }


def test_a_planted_law_is_found() -> None:
    """Error 0.05 + 2 / sqrt(640) = 0.12906. Five points less: 2 / sqrt(n) = 0.02906, n = 4,737, 4,097 more."""
    exact = more_images(planted(0.0))
    assert exact.score == pytest.approx(1 - 0.12906, abs=1e-4)
    assert exact.more == pytest.approx(4097, rel=0.01)
    noisy = more_images(planted(0.001))
    assert noisy.more is not None
    assert noisy.interval is not None
    assert noisy.interval[0] <= 4097 <= noisy.interval[1]


def test_the_score_is_that_of_all_seeds() -> None:
    """A law of three parameters meets the mean of each of three sizes; a resample of the seeds has another mean."""
    curve = planted(0.004, seeds=4)
    mean = np.mean([of_seed[640] for of_seed in curve.values()])
    assert more_images(curve).score == pytest.approx(mean, abs=1e-6)


@pytest.mark.parametrize(
    ("curve", "reason"),
    [
        ({s: {10: 0.7, 40: 0.7, 160: 0.7} for s in range(3)}, "the curve is flat, or its end too near"),
        (planted(0.0, floor=0.0, scale=0.3), "the curve is flat, or its end too near"),  # error 0.012 at 640
        (
            {s: {10: 0.5, 40: 0.7} for s in range(3)},
            "a law needs 3 numbers of images and 2 seeds, the runs have 2 and 3",
        ),
        (
            {s: {10: 0.5, 213 + s: 0.7} for s in range(3)},
            "a law needs 3 numbers of images and 2 seeds, the runs have 2 and 3",
        ),
        ({0: {10: 0.5, 40: 0.6, 160: 0.7}}, "the runs have 3 and 1"),
        ({}, "the runs have 0 and 0"),
    ],
)
def test_where_the_curve_says_nothing_that_is_said(curve: dict[int, dict[int, float]], reason: str) -> None:
    found = more_images(curve)
    assert (found.more, found.interval) == (None, None)
    assert reason in found.reason


def test_noise_without_a_trend_gives_no_number() -> None:
    rng = np.random.default_rng(1)
    silent = [
        more_images({seed: {n: 0.7 + 0.02 * rng.normal() for n in SIZES} for seed in range(3)}).more is None
        for _ in range(10)
    ]
    assert sum(silent) >= 9


def test_the_number_of_tested_images_is_wilsons() -> None:
    """At one half its half width is z / 2 / sqrt(n + z^2): 5 points at n = z^2 (100 - 1) = 380.3."""
    assert more_tested(0.5, 0) == 381
    assert more_tested(0.5, 300) == 81
    assert more_tested(0.95, 300) == 0


def test_the_number_of_seeds_decides_as_often_as_promised() -> None:
    """A difference of 0.01 with deviation 0.01: t tests of that many seeds reject in 80 %, of one less in fewer."""
    half = t.ppf(0.975, 2) * 0.01 / math.sqrt(3)
    more = more_seeds(0.01, (0.01 - half, 0.01 + half), 3, comparisons=1)
    assert more is not None

    def power(count: int) -> float:
        values = np.random.default_rng(0).normal(0.01, 0.01, (20_000, count))
        return float(
            (np.abs(values.mean(1) / values.std(1, ddof=1)) * math.sqrt(count) > t.ppf(0.975, count - 1)).mean()
        )

    assert power(3 + more) >= 0.79
    assert power(3 + more - 1) < 0.8
    corrected = more_seeds(0.01, (0.01 - half, 0.01 + half), 3, comparisons=10)
    assert corrected is not None
    assert corrected > more
    assert more_seeds(0.0001, (-0.02, 0.0202), 3, comparisons=1) is None
