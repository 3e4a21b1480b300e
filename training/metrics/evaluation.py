"""What a model predicts on a split of the data, and how good that is."""

import numpy as np
from jaxtyping import Float32
from scipy.special import softmax
from torch import nn

from training.data.dataset import Dataset
from training.data.sources.source import Split
from training.distributed import ALONE, Group
from training.errors import NonFiniteLoss
from training.metrics import classification
from training.metrics.classification import Probabilities, Scores
from training.models import prediction

TRAINING_IMAGES_SCORED = 5_000
"""For the gap between training and validation, this many training images are scored without augmentation."""


def predict(model: nn.Module, dataset: Dataset, split: Split, group: Group = ALONE) -> Probabilities:
    """Probabilities `[images, classes]` of one split: the softmax of `compute_logits`."""
    return softmax(compute_logits(model, dataset, split, group), axis=1)


def compute_logits(
    model: nn.Module, dataset: Dataset, split: Split, group: Group = ALONE
) -> Float32[np.ndarray, "images classes"]:
    """Logits of one split; of the training split, of its first 5,000 images.

    Each process of a group predicts a part, and every process returns the whole. Raises NonFiniteLoss.
    """
    indices = dataset.splits[split][: TRAINING_IMAGES_SCORED if split == "train" else None]
    own = group.part(len(indices))
    logits = group.gather(prediction.logits(model, dataset.images, indices[own.start : own.stop]))
    if not np.isfinite(logits).all():
        raise NonFiniteLoss(f"the model gives values that are not finite on the {split} split")
    return logits


def score(dataset: Dataset, split: Split, probabilities: Probabilities) -> Scores:
    """Scores of the probabilities that `predict` returned for this split."""
    labels = dataset.labels[dataset.splits[split][: len(probabilities)]]
    return classification.score(labels, probabilities, dataset.classes)
