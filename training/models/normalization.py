"""Normalisation as the first layer of the network, and the calibration of its logits as the last one."""

from statistics import fmean

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from serving.contract.card.decisions import Calibration
from serving.contract.card.model_card import Normalization
from training.models.prediction import Images, Indices, batches
from training.options.config import TrainConfig

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
EPSILON = 1e-4
LARGEST = 20.0
"""What Albumentations adds to a divisor and where it clips in the modes that measure the image itself."""


def normalization(config: TrainConfig, images: Images, indices: Indices) -> Normalization:
    """The numbers of the first layer: from the options, from ImageNet, or measured on the images `indices`.

    For gray, ImageNet's three values are averaged.
    """
    mean, std = config.mean, config.std
    if not mean and config.mean_std == "dataset":
        # From counts of the 256 values: exact, and without a float copy.
        values = np.arange(256) / config.max_pixel_value
        counts = np.zeros((config.channels, 256), np.int64)
        for batch in batches(images, indices):
            counts += [np.bincount(batch[..., channel].ravel(), minlength=256) for channel in range(config.channels)]
        means = [np.average(values, weights=count) for count in counts]
        deviations = [np.sqrt(np.average((values - m) ** 2, weights=c)) for m, c in zip(means, counts, strict=True)]
        mean, std = tuple(map(float, means)), tuple(max(float(deviation), EPSILON) for deviation in deviations)
    elif not mean:
        mean, std = IMAGENET_MEAN, IMAGENET_STD
        if config.channels == 1:
            mean, std = (round(fmean(IMAGENET_MEAN), 3),), (round(fmean(IMAGENET_STD), 3),)
    return Normalization(mode=config.normalization, mean=mean, std=std, max_pixel_value=config.max_pixel_value)


class Normalize(nn.Module):
    """`A.Normalize` as a layer: uint8 `[batch, height, width, channels]` -> float32 `[batch, channels, height, width]`.

    In mode `standard` every operation is in float32 and in Albumentations' order, which makes it bit-identical. The
    modes that measure the image compute in float64, as Albumentations does.
    """

    mean: Tensor
    scale: Tensor

    def __init__(self, normalization: Normalization) -> None:
        super().__init__()
        self.mode = normalization.mode
        mean = torch.tensor(normalization.mean, dtype=torch.float32) * normalization.max_pixel_value
        std = torch.tensor(normalization.std, dtype=torch.float32) * normalization.max_pixel_value
        self.register_buffer("mean", mean.reshape(-1, 1, 1))
        self.register_buffer("scale", torch.reciprocal(std).reshape(-1, 1, 1))

    def forward(
        self, images: UInt8[Tensor, "batch height width channels"]
    ) -> Float[Tensor, "batch channels height width"]:
        # Permuted while one byte a value: a broadcast over a last axis of 3 costs ten times as much.
        pixels = images.permute(0, 3, 1, 2)
        if self.mode == "standard":
            return (pixels.float() - self.mean) * self.scale
        values = pixels.double()
        over = (2, 3) if self.mode.endswith("per_channel") else (1, 2, 3)
        if self.mode.startswith("image"):
            centred = values - values.mean(over, keepdim=True)
            deviation = centred.square().mean(over, keepdim=True).sqrt()
            return (centred / (deviation + EPSILON)).clamp(-LARGEST, LARGEST).float()
        low, high = values.amin(over, keepdim=True), values.amax(over, keepdim=True)
        return ((values - low) / (high - low + EPSILON)).float()


class Calibrate(nn.Module):
    """The last layer of a calibrated model: the card's `Calibration`, of logits `[batch, classes]`."""

    bias: Tensor
    temperature: Tensor

    def __init__(self, calibration: Calibration) -> None:
        super().__init__()
        self.register_buffer("bias", torch.tensor(calibration.bias, dtype=torch.float32))
        self.register_buffer("temperature", torch.tensor(calibration.temperature, dtype=torch.float32))

    def forward(self, logits: Float[Tensor, "batch classes"]) -> Float[Tensor, "batch classes"]:
        return (logits + self.bias if len(self.bias) else logits) / self.temperature
