"""List images and their labels. The path of --data decides which of five formats is read.

Without a path, the handwritten digits inside scikit-learn; a folder of class folders; a folder of splits (train/ and
perhaps val/ and test/) of class folders; a CSV manifest; an .npz file in the MedMNIST layout. What is at a URL is
copied before. No image is decoded here.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
from sklearn.datasets import load_digits

from serving.contract.objects import Location, Url
from training.data.cache import Cache
from training.data.sources.corrections import corrected
from training.data.sources.folders import folders
from training.data.sources.forgotten import NOTHING, Forgotten
from training.data.sources.manifest import manifest
from training.data.sources.npz import npz
from training.data.sources.objects import local_copy
from training.data.sources.source import Source
from training.errors import DataError

DIGITS = "handwritten digits (scikit-learn)"
"""Name of the data that is taken without a path."""
DIGITS_SCALE = 2


def find_source(
    data: Location | None,
    cache: Cache,
    outputs: Sequence[Path] = (),
    corrections: Path | None = None,
    forgotten: Forgotten = NOTHING,
) -> Source:
    """Determine the format of the data and list its images, without those that were forgotten.

    `outputs` are folders that this project writes to. Labels of the file `corrections` replace those of the data.
    Raises DataError, OSError.
    """
    source = _listed(data, cache, outputs, forgotten)
    return forgotten.without(source if corrections is None else corrected(source, corrections))


def _listed(data: Location | None, cache: Cache, outputs: Sequence[Path], forgotten: Forgotten) -> Source:
    if data is None:
        return _digits()
    if isinstance(data, Url):
        return replace(_listed(local_copy(data, cache.folder), cache, outputs, forgotten), name=str(data))
    if not data.exists():
        raise DataError(f"{data}: there is no such file or folder")
    if data.is_dir():
        return folders(data, outputs if cache.folder is None else [*outputs, cache.folder])
    if data.suffix.lower() == ".csv":
        return manifest(data)
    if data.suffix.lower() == ".npz":
        return npz(data, cache, forgotten)
    raise DataError(f"{data}: expected a folder, a .csv manifest or an .npz file")


def _digits() -> Source:
    digits = load_digits()
    pixels = np.round(digits.images * (255 / 16)).astype(np.uint8)
    side = pixels.shape[1] * DIGITS_SCALE
    pixels = np.stack([cv2.resize(image, (side, side), interpolation=cv2.INTER_CUBIC) for image in pixels])
    return Source(
        name=DIGITS,
        identity="digits",
        keys=[f"digits#{i}" for i in range(len(pixels))],
        labels=[str(label) for label in digits.target],
        groups=[""] * len(pixels),
        splits=[None] * len(pixels),
        read=lambda i: pixels[i],
        size=lambda i: pixels[i].nbytes,
    )
