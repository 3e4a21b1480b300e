"""Classes of different size, made to count alike: by weights in the loss, or by how often they are drawn."""

import numpy as np
from jaxtyping import Float64, Int64


def weights(labels: Int64[np.ndarray, " images"], classes: int) -> Float64[np.ndarray, " classes"]:
    """A weight for each class: the inverse of its frequency, scaled so that the images' weights are 1 on average."""
    return len(labels) / (classes * np.bincount(labels, minlength=classes))


def order(labels: Int64[np.ndarray, " images"], rng: np.random.Generator) -> Int64[np.ndarray, " images"]:
    """As many indices as there are labels, in random order, that hold every class equally often, to one.

    Within a class, every image is drawn equally often, to one.
    """
    classes = np.unique(labels)
    quotas = len(labels) // len(classes) + (rng.permutation(len(classes)) < len(labels) % len(classes))
    drawn = [
        np.resize(rng.permutation(np.flatnonzero(labels == label)), quota)
        for label, quota in zip(classes, quotas, strict=True)
    ]
    return rng.permutation(np.concatenate(drawn))
