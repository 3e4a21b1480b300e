"""Balance classes of different size: by weights in the loss, by the logits, or by how often images are drawn."""

import numpy as np
from jaxtyping import Float64, Int64


def weights(labels: Int64[np.ndarray, " images"], classes: int) -> Float64[np.ndarray, " classes"]:
    """Return the weight of each class: its inverse frequency, scaled so that the mean weight of the images is 1."""
    return len(labels) / (classes * np.bincount(labels, minlength=classes))


def frequencies(labels: Int64[np.ndarray, " images"], classes: int) -> Float64[np.ndarray, " classes"]:
    """Return the share of each class."""
    return np.bincount(labels, minlength=classes) / len(labels)


def order(labels: Int64[np.ndarray, " images"], rng: np.random.Generator) -> Int64[np.ndarray, " images"]:
    """Draw one index for each label, in random order, so that the counts of two classes differ by one at most.

    The counts of two images of one class differ by one at most, too.
    """
    classes = np.unique(labels)
    quotas = len(labels) // len(classes) + (rng.permutation(len(classes)) < len(labels) % len(classes))
    drawn = [
        np.resize(rng.permutation(np.flatnonzero(labels == label)), quota)
        for label, quota in zip(classes, quotas, strict=True)
    ]
    return rng.permutation(np.concatenate(drawn))
