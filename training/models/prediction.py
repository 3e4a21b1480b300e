"""What a network computes for images, one batch at a time, when nothing is learned."""

from collections.abc import Iterator

import numpy as np
import torch
from jaxtyping import Float32, Int64, UInt8
from scipy.special import softmax
from torch import nn

from training.device import full_float32
from training.storage import copied

Images = UInt8[np.ndarray, "images height width channels"]
Features = Float32[np.ndarray, "images features"]
Indices = Int64[np.ndarray, " indices"]

INFERENCE_BATCH = 256
"""Images in a batch wherever nothing is learned, at most."""
INFERENCE_PIXELS = 256 * 64 * 64
"""Pixels in such a batch, at most: at 224 px a backbone keeps 30 MB of activations for each image."""


def inference_batch(height: int, width: int) -> int:
    """The number of images of this size in a batch when nothing is learned."""
    return max(1, min(INFERENCE_BATCH, INFERENCE_PIXELS // (height * width)))


def batches(images: Images | Features, indices: Indices) -> Iterator[Images | Features]:
    """Copies of the images, or their features, at `indices`, a batch at a time; of none, one batch of none."""
    size = inference_batch(images.shape[1], images.shape[2]) if images.ndim == 4 else INFERENCE_BATCH
    for start in range(0, max(len(indices), 1), size):
        yield copied(images, indices[start : start + size])


def predict(
    model: nn.Module, images: Images | Features, indices: Indices | None = None
) -> Float32[np.ndarray, "indices classes"]:
    """Softmax of the model's logits."""
    return softmax(logits(model, images, indices), axis=1)


def logits(
    model: nn.Module, images: Images | Features, indices: Indices | None = None
) -> Float32[np.ndarray, "indices classes"]:
    """The model's output before the softmax, in float32 without TF32, computed on the model's own device.

    For the images `indices`, by default all; one batch at a time is copied.
    """
    device = next(model.parameters()).device
    training = model.training
    model.eval()
    rows = []
    with torch.inference_mode(), full_float32():
        for batch in batches(images, np.arange(len(images)) if indices is None else indices):
            rows.append(model(torch.from_numpy(batch).to(device)).float().cpu().numpy())
    model.train(training)
    return np.concatenate(rows)
