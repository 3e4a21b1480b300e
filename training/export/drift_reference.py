"""The features of the test split that the service compares with those of recent images, to detect drift."""

import numpy as np

from serving.contract.drift import Histogram, feature_row, histograms, image_features
from training.data.dataset import Dataset
from training.metrics.classification import Probabilities

MAX_IMAGES = 2_000
"""Images that are read, evenly spread over the split: ten bins need no more."""


def of_test_split(dataset: Dataset, probabilities: Probabilities) -> dict[str, Histogram]:
    """The histogram of each feature of the test split, whose original images are read again; empty for a small split.

    `probabilities` are the model's, a row for each test image.
    """
    test = dataset.splits["test"]
    assert len(probabilities) == len(test)
    chosen = np.linspace(0, len(test) - 1, min(len(test), MAX_IMAGES)).astype(int)
    rows = []
    for row in chosen:
        features = image_features(dataset.unresized(int(test[row])), dataset.images[test[row]])
        rows.append(feature_row(features, probabilities[row]))
    return histograms(np.array(rows, np.float64))
