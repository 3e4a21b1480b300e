"""Batches of a few sizes for a GPU, which plans its convolutions anew for every size of batch that it has not seen."""

import numpy as np
from jaxtyping import UInt8

from serving.contract.model import Images

Filled = UInt8[np.ndarray, "size height width channels"]


def batch_sizes(largest: int) -> list[int]:
    """The sizes of batches that a GPU runs: powers of two below the largest batch, and that one."""
    return [*(2**power for power in range((largest - 1).bit_length())), largest]


def padded(images: Images, largest: int) -> Filled:
    """The batch with black images behind it, up to the next of `batch_sizes(largest)`."""
    size = next(size for size in batch_sizes(largest) if size >= len(images))
    missing = size - len(images)
    if missing == 0:
        return images
    return np.concatenate([images, np.zeros((missing, *images.shape[1:]), images.dtype)])
