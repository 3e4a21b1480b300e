"""What a network computes for images, one batch at a time, when nothing is learned."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Protocol, runtime_checkable

import joblib
import numpy as np
import torch
from jaxtyping import Float32, Int64, UInt8
from scipy.special import softmax
from torch import nn
from tqdm import tqdm

from serving.contract.card.model_card import VIEWS, ModelCard
from serving.contract.decode import Pixels, as_channels
from serving.contract.formats.image_header import ImageError
from training.data.dataset import LabelledImages
from training.device import full_float32
from training.errors import DataError
from training.models import views
from training.storage import copy_rows

Images = UInt8[np.ndarray, "images height width channels"]
Features = Float32[np.ndarray, "images features"]
Indices = Int64[np.ndarray, " indices"]

INFERENCE_BATCH = 256
"""Images in a batch wherever nothing is learned, at most."""
INFERENCE_PIXELS = 256 * 64 * 64
"""Pixels in such a batch, at most: at 224 px a backbone keeps 30 MB of activations for each image."""


def inference_batch(height: int, width: int, views: int = 1) -> int:
    """The number of images of this size in a batch when nothing is learned, where each makes this many views."""
    return max(1, min(INFERENCE_BATCH, INFERENCE_PIXELS // (height * width)) // views)


def batches(images: Images | Features, indices: Indices, views: int = 1) -> Iterator[Images | Features]:
    """Copies of the images, or their features, at `indices`, a batch at a time; of none, one batch of none."""
    size = inference_batch(images.shape[1], images.shape[2], views) if images.ndim == 4 else INFERENCE_BATCH
    for start in range(0, max(len(indices), 1), size):
        yield copy_rows(images, indices[start : start + size])


def predict(
    model: nn.Module, images: Images | Features, indices: Indices | None = None
) -> Float32[np.ndarray, "indices classes"]:
    """Softmax of the model's logits."""
    return softmax(outputs(model, images, indices), axis=1)


def outputs(
    model: nn.Module, images: Images | Features, indices: Indices | None = None
) -> Float32[np.ndarray, "indices _"]:
    """What the model computes, logits or a body's features, in float32 without TF32, on the model's own device.

    For the images `indices`, by default all; one batch at a time is copied.
    """
    device = next(model.parameters()).device
    training = model.training
    model.eval()
    rows = []
    with torch.inference_mode(), full_float32():
        for batch in batches(images, np.arange(len(images)) if indices is None else indices, views.count(model)):
            rows.append(model(torch.from_numpy(batch).to(device)).float().cpu().numpy())
    model.train(training)
    return np.concatenate(rows)


@runtime_checkable
class ProbabilityModel(Protocol):
    """A model with its card: the service's Classifier, or torch in its place."""

    card: ModelCard

    def predict(self, images: Images) -> Float32[np.ndarray, "images classes"]:
        """Uint8 images `[batch, height, width, channels]` to probabilities `[batch, classes]`."""


def predict_images(
    classifier: ProbabilityModel,
    images: LabelledImages,
    indices: Int64[np.ndarray, " _"],
    batch_size: int | None = None,
) -> Float32[np.ndarray, "images classes"]:
    """The probabilities that the service gives the images `indices`, a row for each, columns as `images.classes`."""
    rows = [classifier.predict(batch) for batch in fitted_batches(classifier.card, images, indices, batch_size)]
    return np.concatenate(rows)[:, [classifier.card.classes.index(name) for name in images.classes]]


def fitted_batches(
    card: ModelCard, images: LabelledImages, indices: Int64[np.ndarray, " _"], batch_size: int | None = None
) -> Iterator[Images]:
    """The images `indices` as a model of this card takes them, a batch at a time.

    They are read, decoded and resized anew; memory holds one batch of resized images. Raises DataError for one that is
    too long to be cropped.
    """
    preprocessing = card.preprocessing
    image_set = replace(images.image_set, depth=preprocessing.depth)
    size = batch_size or inference_batch(preprocessing.height, preprocessing.width, VIEWS[card.views])

    def fitted(index: int) -> Pixels:
        # The service's `decode` converts RGB to gray in the same way, so these are its pixels.
        try:
            return preprocessing.fitted(as_channels(image_set.read(index), preprocessing.channels))
        except ImageError as error:
            raise DataError(f"{image_set.keys[index]}: {error}; the model crops its images") from error

    with ThreadPoolExecutor(joblib.cpu_count()) as pool:
        for start in tqdm(range(0, len(indices), size), "predict", unit=" batches", disable=None, leave=False):
            yield np.stack(list(pool.map(fitted, indices[start : start + size].tolist())))
