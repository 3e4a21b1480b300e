"""The features of the test split that the service compares with those of recent images, to detect drift."""

import numpy as np

from serving.contract.drift import Histogram, feature_row, histograms, image_features
from training.data.dataset import Dataset
from training.metrics.classification import Probabilities

MOST = 2_000
"""The most images that are read, evenly spread over the split: ten bins need no more."""


def of_test_split(dataset: Dataset, answers: Probabilities) -> dict[str, Histogram]:
    """The histogram of each feature of the test split, whose images are read again; `answers` has a row for each.

    Empty if the test split is small.
    """
    test = dataset.splits["test"]
    assert len(answers) == len(test)
    chosen = np.linspace(0, len(test) - 1, min(len(test), MOST)).astype(int)
    rows = []
    for row in chosen:
        image = image_features(dataset.original(int(test[row])), dataset.images[test[row]])
        rows.append(feature_row(image, answers[row]))
    return histograms(np.array(rows, np.float64))
