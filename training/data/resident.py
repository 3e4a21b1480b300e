"""Training images that stay on the GPU: a batch is then an index there, not a copy from the host."""

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor

from training.options.settled import SettledConfig
from training.storage import copy_rows

MEMORY_SHARE = 0.25
"""Share of the free device memory that the images may use; weights and activations need the rest."""
CHUNK = 1024
"""Images that are copied at once: a copy of all would take as much memory of the host as of the GPU."""


class ResidentImages:
    """The images of the training split and their labels, on `device`.

    `images` are uint8 `[images, height, width, channels]` or float32 features `[images, features]`, `indices` those of
    the training split.
    """

    def __init__(
        self, images: np.ndarray, labels: np.ndarray, indices: Int64[np.ndarray, " _"], device: torch.device
    ) -> None:
        part = torch.from_numpy(images[:0])
        self._images = torch.empty((len(indices), *part.shape[1:]), dtype=part.dtype, device=device)
        for start in range(0, len(indices), CHUNK):
            chosen = indices[start : start + CHUNK]
            self._images[start : start + CHUNK] = torch.from_numpy(copy_rows(images, chosen))
        self._labels = torch.from_numpy(labels[indices]).to(device)
        self._row = np.zeros(len(images), np.int64)
        self._row[indices] = np.arange(len(indices))

    def batch(self, images: list[int]) -> tuple[Tensor, Tensor]:
        """These images of the data and their labels."""
        rows = torch.from_numpy(self._row[images]).to(self._images.device, non_blocking=True)
        return self._images[rows], self._labels[rows]


def fits(images: np.ndarray, indices: np.ndarray, config: SettledConfig, device: torch.device) -> bool:
    """Whether the training images can stay on the device: a GPU with enough memory, nothing to do in workers."""
    if device.type != "cuda" or (config.augmented and config.augment_on == "workers"):
        return False
    free, _ = torch.cuda.mem_get_info(device)
    return bool(images[0].nbytes * len(indices) <= MEMORY_SHARE * free)
