"""The networks: normalisation as the first layer, then an MLP or a small residual CNN."""

import math
from itertools import pairwise
from statistics import fmean

import numpy as np
import torch
from jaxtyping import Float, Float32, UInt8
from scipy.special import softmax
from torch import Tensor, nn

from serving.contract import Normalization, Preprocessing
from training.config import TrainConfig

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
STEM_OUTPUT_AT_MOST = 32
"""Largest side, in pixels, of the maps that the residual stages of the CNN work on."""
BATCH = 256
EPSILON = 1e-4
LARGEST = 20.0
"""What Albumentations adds to a divisor and where it clips in the modes that measure the image itself."""


def normalization(config: TrainConfig, images: UInt8[np.ndarray, "images height width channels"]) -> Normalization:
    """The numbers of the first layer: from the options, from ImageNet, or measured on these training images.

    For gray, ImageNet's three values are averaged.
    """
    mean, std = config.mean, config.std
    if not mean and config.mean_std == "dataset":
        # From counts of the 256 values: exact, and without a float copy of all images.
        values = np.arange(256) / config.max_pixel_value
        counts = [np.bincount(images[..., channel].ravel(), minlength=256) for channel in range(config.channels)]
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


class Temperature(nn.Module):
    """Divide logits `[batch, classes]` by a temperature: the last layer of a calibrated model."""

    temperature: Tensor

    def __init__(self, temperature: float) -> None:
        super().__init__()
        self.register_buffer("temperature", torch.tensor(temperature, dtype=torch.float32))

    def forward(self, logits: Float[Tensor, "batch classes"]) -> Float[Tensor, "batch classes"]:
        return logits / self.temperature


class ResidualBlock(nn.Module):
    """Two 3 x 3 convolutions with a shortcut (He et al. 2016, figure 2); the second scale starts at zero."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        last, scale = convolution(out_channels, out_channels, 1)
        nn.init.zeros_(scale.weight)
        self.body = nn.Sequential(*convolution(in_channels, out_channels, stride), nn.ReLU(), last, scale)
        self.shortcut: nn.Module = nn.Identity()
        if stride > 1 or in_channels != out_channels:
            self.shortcut = nn.Sequential(nn.AvgPool2d(stride), *convolution(in_channels, out_channels, 1, kernel=1))

    def forward(self, maps: Float[Tensor, "batch in h w"]) -> Float[Tensor, "batch out h2 w2"]:
        return torch.relu(self.shortcut(maps) + self.body(maps))


def convolution(in_channels: int, out_channels: int, stride: int, kernel: int = 3) -> tuple[nn.Conv2d, nn.BatchNorm2d]:
    """A convolution and the batch normalisation that makes its bias superfluous."""
    conv = nn.Conv2d(in_channels, out_channels, kernel, stride, kernel // 2, bias=False)
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    return conv, nn.BatchNorm2d(out_channels)


def mlp(inputs: int, hidden: tuple[int, ...], classes: int, dropout: float) -> nn.Sequential:
    """Flatten, then Linear and ReLU for each width of `hidden`, then Linear: logits `[batch, classes]`."""
    layers: list[nn.Module] = [nn.Flatten()]
    for fan_in, fan_out in pairwise((inputs, *hidden)):
        layers += [nn.Linear(fan_in, fan_out), nn.ReLU()]
        if dropout:
            layers.append(nn.Dropout(dropout))
    return nn.Sequential(*layers, nn.Linear((inputs, *hidden)[-1], classes))


def cnn(channels: int, side: int, width: int, classes: int, dropout: float) -> nn.Sequential:
    """A stem that brings any side to at most 32 px, three residual stages, average: logits `[batch, classes]`."""
    halvings = max(0, math.ceil(math.log2(side / STEM_OUTPUT_AT_MOST)))
    stem: list[nn.Module] = []
    for step in range(max(halvings, 1)):
        stem += [*convolution(width if step else channels, width, 2 if halvings else 1), nn.ReLU()]
    return nn.Sequential(
        *stem,
        ResidualBlock(width, width, 1),
        ResidualBlock(width, 2 * width, 2),
        ResidualBlock(2 * width, 4 * width, 2),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Dropout(dropout),
        nn.Linear(4 * width, classes),
    )


def build(
    config: TrainConfig, preprocessing: Preprocessing, normalization: Normalization, classes: int
) -> nn.Sequential:
    """The network of a run: uint8 images `[batch, height, width, channels]` -> logits `[batch, classes]`."""
    height, width, channels = preprocessing.height, preprocessing.width, preprocessing.channels
    if config.model == "mlp":
        body = mlp(height * width * channels, config.hidden, classes, config.dropout)
    else:
        body = cnn(channels, max(height, width), config.width, classes, config.dropout)
    return nn.Sequential(Normalize(normalization), body)


def predict(
    model: nn.Module, images: UInt8[np.ndarray, "images height width channels"]
) -> Float32[np.ndarray, "images classes"]:
    """Softmax of the model's logits."""
    return softmax(logits(model, images), axis=1)


def logits(
    model: nn.Module, images: UInt8[np.ndarray, "images height width channels"]
) -> Float32[np.ndarray, "images classes"]:
    """What the model gives before the softmax, in float32 and without TF32, on the model's own device."""
    device = next(model.parameters()).device
    training = model.training
    model.eval()
    rows = []
    with torch.inference_mode(), torch.backends.cudnn.flags(allow_tf32=False):
        for start in range(0, len(images), BATCH):
            batch = torch.from_numpy(images[start : start + BATCH]).to(device)
            rows.append(model(batch).float().cpu().numpy())
    model.train(training)
    return np.concatenate(rows)
