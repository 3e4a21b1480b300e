"""What the test split is like, in the features by which the service tells drift."""

import numpy as np

from serving.contract.drift import Histogram, look, observe, reference
from training.data.dataset import Dataset
from training.metrics.classification import Probabilities

MOST = 2_000
"""Images that are read for it, evenly spread over the split: ten bins need no more."""


def of_test_split(dataset: Dataset, answers: Probabilities) -> dict[str, Histogram]:
    """Histograms of the test split, its images read anew; `answers` has a row for each. Empty where it is small."""
    test = dataset.splits["test"]
    assert len(answers) == len(test)
    chosen = np.linspace(0, len(test) - 1, min(len(test), MOST)).astype(int)
    rows = [observe(look(dataset.original(int(test[row])), dataset.images[test[row]]), answers[row]) for row in chosen]
    return reference(np.array(rows, np.float64))
