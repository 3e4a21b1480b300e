"""Training of the head alone: the features of the images are computed once, and then take the images' place."""

from dataclasses import replace

import numpy as np
from torch import nn

from training.data.dataset import Dataset
from training.models import prediction


def with_features(dataset: Dataset, body: nn.Sequential) -> Dataset:
    """The dataset with float32 features `[images, features]` in place of pixels, for training and validation.

    `body` turns uint8 images `[batch, height, width, channels]` into features. Those of test images are not needed
    before the model is complete; they are left 0.
    """
    indices = np.concatenate([dataset.splits["train"], dataset.splits["val"]])
    computed = prediction.logits(body, dataset.images, indices)
    features = np.zeros((len(dataset.images), computed.shape[1]), np.float32)
    features[indices] = computed
    return replace(dataset, images=features)
