"""Mixed images and labels: mixup (Zhang et al. 2018) and CutMix (Yun et al. 2019), on the device that trains."""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float32, Int64, UInt8
from torch import Tensor
from torch.nn.functional import one_hot

STREAM = 1
"""Keeps these draws apart from others that are made from a seed, an epoch and a number."""

Images = UInt8[Tensor, "batch height width channels"]
Mixed = UInt8[Tensor, "mixed height width channels"]
Features = Float32[Tensor, "batch features"]
"""What is trained on where the head alone learns; features are not mixed."""
Targets = Float32[Tensor, "mixed classes"]


@dataclass(frozen=True, kw_only=True)
class Mixing:
    """Turns labels into targets, rows of shares of the classes that sum to one, and mixes the images accordingly.

    `mixup` and `cutmix` are the parameters of their Beta distributions; 0 is not at all, which leaves the images alone.
    Each image is mixed with its neighbour in the batch, whose order is random. Of a part of a batch, the first
    `borrowed` images are there to be neighbours only, and do not come out.
    """

    classes: int
    seed: int
    mixup: float
    cutmix: float
    borrowed: int = 0

    def __call__(
        self, images: Images | Features, labels: Int64[Tensor, " batch"], *key: int
    ) -> tuple[Mixed | Features, Targets]:
        """Mix one batch by draws that depend on the seed and `key` (epoch, step, part) alone."""
        targets = one_hot(labels, self.classes).float()
        methods = [(mix, alpha) for mix, alpha in ((_mixup, self.mixup), (_cutmix, self.cutmix)) if alpha]
        if not methods:
            return images, targets
        rng = np.random.default_rng((self.seed, STREAM, *key))
        mix, alpha = methods[rng.integers(len(methods))]
        mixed, share = mix(images, rng.beta(alpha, alpha), rng)
        return mixed[self.borrowed :], torch.lerp(targets.roll(1, 0), targets, share)[self.borrowed :]


def _mixup(images: Images, share: float, rng: np.random.Generator) -> tuple[Images, float]:
    """Whole images one over the other, still bytes; the share that is the image's own."""
    mixed = torch.lerp(images.roll(1, 0).float(), images.float(), share)
    return mixed.round().to(torch.uint8), share


def _cutmix(images: Images, share: float, rng: np.random.Generator) -> tuple[Images, float]:
    """A box of the neighbour, with its sides in proportion and cut off at the edges; the share left of the image."""
    height, width = images.shape[1:3]
    half_height, half_width = (round(side * np.sqrt(1 - share) / 2) for side in (height, width))
    row, column = rng.integers(height), rng.integers(width)
    top, bottom = max(0, row - half_height), min(height, row + half_height)
    left, right = max(0, column - half_width), min(width, column + half_width)
    mixed = images.clone()
    mixed[:, top:bottom, left:right] = images.roll(1, 0)[:, top:bottom, left:right]
    return mixed, 1 - (bottom - top) * (right - left) / (height * width)
