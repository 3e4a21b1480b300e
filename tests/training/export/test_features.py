from dataclasses import replace

import numpy as np
import torch

from training.data.dataset import Dataset
from training.distributed import ALONE
from training.export.features import with_features
from training.models import networks, prediction


def test_they_are_what_the_body_computes(model: torch.nn.Sequential, dataset: Dataset) -> None:
    body, head = networks.features_and_head(model)
    features = with_features(dataset, body, ALONE)
    expected = prediction.outputs(body, dataset.images)
    assert features.images.dtype == np.float32
    np.testing.assert_allclose(features.images, expected, atol=1e-5)
    np.testing.assert_allclose(
        prediction.outputs(head, features.images), prediction.outputs(model, dataset.images), atol=1e-4
    )
    assert replace(features, images=dataset.images) == dataset
