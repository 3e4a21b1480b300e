"""Intervals of a share, and of the difference of two shares of the same images, by formulas."""

from math import sqrt

import numpy as np
from jaxtyping import Bool, Float64
from scipy.stats import norm

LEVEL = 0.95

Interval = tuple[float, float]
Right = Bool[np.ndarray, " images"]
"""Which images a model answers rightly."""


def wilson(shares: Float64[np.ndarray, " n"], draws: Float64[np.ndarray, " n"]) -> Float64[np.ndarray, "2 n"]:
    """Limits of Wilson's interval (1927) of shares of this many draws, which need not be whole numbers."""
    z = norm.ppf((1 + LEVEL) / 2)
    centre = shares + z**2 / (2 * draws)
    half = z * np.sqrt(shares * (1 - shares) / draws + z**2 / (4 * draws**2))
    limits: np.ndarray = np.stack([centre - half, centre + half]) / (1 + z**2 / draws)
    return limits.clip(0, 1)


def newcombe(a: Right, b: Right, draws: int) -> Interval:
    """Interval of the share of b less that of a, from Wilson's of both and their correlation.

    Newcombe, Improved confidence intervals for the difference between binomial proportions based on paired data, 1998,
    method 10. `draws` is the number of independent draws, at most that of images.
    """
    shares = np.array([a.mean(), b.mean()])
    (low_a, low_b), (high_a, high_b) = wilson(shares, np.full(2, float(draws)))
    below_a, above_a, below_b, above_b = shares[0] - low_a, high_a - shares[0], shares[1] - low_b, high_b - shares[1]
    phi = _correlation(a, b, draws)
    down = sqrt(below_b**2 - 2 * phi * below_b * above_a + above_a**2)
    up = sqrt(above_b**2 - 2 * phi * above_b * below_a + below_a**2)
    difference = float(shares[1] - shares[0])
    return difference - down, difference + up


def _correlation(a: Right, b: Right, draws: int) -> float:
    """Phi with Newcombe's correction for continuity."""
    both, only_a, only_b, neither = (float(draws * each.mean()) for each in (a & b, a & ~b, b & ~a, ~a & ~b))
    scale = (both + only_a) * (only_b + neither) * (both + only_b) * (only_a + neither)
    product = both * neither - only_a * only_b
    corrected = max(product - draws / 2, 0.0) if product > 0 else product
    return corrected / sqrt(scale) if scale else 0.0
