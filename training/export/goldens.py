"""Golden examples: small images with known probabilities, which the service replays whenever it opens the file."""

import cv2
import numpy as np
from torch import nn

from serving.contract.card import Golden
from serving.contract.decode import Preprocessing, pixel_digest
from training.data.dataset import Dataset
from training.models.prediction import predict

GOLDENS = 4
SIDE = 96
"""Largest side of a golden image, in pixels."""


def goldens(model: nn.Sequential, dataset: Dataset) -> tuple[Golden, ...]:
    """Five golden examples from the test split: four PNG images of different classes, and the first again as JPEG.

    Each is cut from the middle of an original image, so that the service replays resizing too. The JPEG is there
    because two builds of a JPEG decoder may differ by a grey level, and the service must detect that. With fewer than
    four classes more images of a class are taken, with fewer than four test images rotated copies of the last.
    """
    test = dataset.splits["test"]
    _, first_of_class = np.unique(dataset.labels[test], return_index=True)
    chosen = [*test[first_of_class], *np.delete(test, first_of_class)][:GOLDENS]
    crops = [_center(dataset.original(int(index))) for index in chosen]
    while len(crops) < GOLDENS:
        crops.append(np.rot90(crops[-1]))
    files = [_encode(crop, ".png") for crop in crops] + [_encode(crops[0], ".jpg")]
    return tuple(_golden(model, dataset.preprocessing, file) for file in files)


def _golden(model: nn.Sequential, preprocessing: Preprocessing, file: bytes) -> Golden:
    pixels = preprocessing(file)
    [probabilities] = predict(model, pixels[np.newaxis])
    return Golden(image=file, pixels=pixel_digest(pixels), probabilities=tuple(map(float, probabilities)))


def _center(pixels: np.ndarray) -> np.ndarray:
    height, width = pixels.shape[:2]
    top, left = max(0, (height - SIDE) // 2), max(0, (width - SIDE) // 2)
    return pixels[top : top + SIDE, left : left + SIDE]


def _encode(pixels: np.ndarray, extension: str) -> bytes:
    succeeded, file = cv2.imencode(extension, pixels[:, :, ::-1] if pixels.shape[2] == 3 else pixels)
    assert succeeded
    return bytes(file)
