"""Probabilities of models of known quality, drawn at random."""

import numpy as np
from scipy.special import softmax

CLASSES = ("a", "b", "c")


def split(seed: int, images: int, signal: float = 1.5) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = rng.choice(3, images, p=[0.6, 0.3, 0.1])
    logits = rng.normal(size=(images, 3)) + signal * np.eye(3)[labels]
    return labels, softmax(logits, axis=1).astype(np.float32)


def champion_and_challenger(seed: int, images: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """One model and another that sees the same signal and noise, but a little more of noise of its own."""
    labels, first = split(seed, images)
    noise = np.random.default_rng(10_000 + seed).normal(scale=0.7, size=first.shape)
    return labels, first, softmax(np.log(first) + noise, axis=1).astype(np.float32)
