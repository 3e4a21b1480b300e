"""The networks: normalisation as the first layer, then an MLP or a small residual CNN; the last layer is the head."""

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import pairwise
from statistics import fmean
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Float32, Int64, UInt8
from pydantic import JsonValue
from scipy.special import softmax
from torch import Tensor, nn

from serving.contract.card import Normalization
from serving.contract.decode import Preprocessing
from training.config import Activation, TrainConfig
from training.storage import copied

Images = UInt8[np.ndarray, "images height width channels"]
Indices = Int64[np.ndarray, " indices"]

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
STEM_OUTPUT_AT_MOST = 32
"""Largest side, in pixels, of the maps that the residual stages of the CNN work on."""
INFERENCE_BATCH = 256
"""Images in a batch wherever nothing is learned."""
EPSILON = 1e-4
LARGEST = 20.0
"""What Albumentations adds to a divisor and where it clips in the modes that measure the image itself."""
ACTIVATIONS: dict[Activation, type[nn.Module]] = {
    "relu": nn.ReLU,
    "leaky_relu": nn.LeakyReLU,
    "gelu": nn.GELU,
    "tanh": nn.Tanh,
    "sigmoid": nn.Sigmoid,
}


def normalization(config: TrainConfig, images: Images, indices: Indices) -> Normalization:
    """The numbers of the first layer: from the options, from ImageNet, or measured on the images `indices`.

    For gray, ImageNet's three values are averaged.
    """
    mean, std = config.mean, config.std
    if not mean and config.mean_std == "dataset":
        # From counts of the 256 values: exact, and without a float copy.
        values = np.arange(256) / config.max_pixel_value
        counts = np.zeros((config.channels, 256), np.int64)
        for batch in _batches(images, indices):
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


class Temperature(nn.Module):
    """Divide logits `[batch, classes]` by a temperature: the last layer of a calibrated model."""

    temperature: Tensor

    def __init__(self, temperature: float) -> None:
        super().__init__()
        self.register_buffer("temperature", torch.tensor(temperature, dtype=torch.float32))

    def forward(self, logits: Float[Tensor, "batch classes"]) -> Float[Tensor, "batch classes"]:
        return logits / self.temperature


class ResidualBlock(nn.Module):
    """Two 3 x 3 convolutions with a shortcut (He et al. 2016, figure 2); what the second one adds starts at zero."""

    def __init__(
        self, in_channels: int, out_channels: int, stride: int, activation: type[nn.Module], batch_norm: bool
    ) -> None:
        super().__init__()
        first = convolution(in_channels, out_channels, stride, batch_norm)
        second = convolution(out_channels, out_channels, 1, batch_norm)
        for parameter in second[-1].parameters():
            nn.init.zeros_(parameter)
        self.body = nn.Sequential(*first, activation(), *second)
        self.shortcut: nn.Module = nn.Identity()
        if stride > 1 or in_channels != out_channels:
            projection = convolution(in_channels, out_channels, 1, batch_norm, kernel=1)
            self.shortcut = nn.Sequential(nn.AvgPool2d(stride), *projection)
        self.activation = activation()

    def forward(self, maps: Float[Tensor, "batch in h w"]) -> Float[Tensor, "batch out h2 w2"]:
        activated: Tensor = self.activation(self.shortcut(maps) + self.body(maps))
        return activated


def convolution(in_channels: int, out_channels: int, stride: int, batch_norm: bool, kernel: int = 3) -> list[nn.Module]:
    """A convolution and the batch normalisation that makes its bias superfluous, or a convolution with bias."""
    conv = nn.Conv2d(in_channels, out_channels, kernel, stride, kernel // 2, bias=not batch_norm)
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    return [conv, nn.BatchNorm2d(out_channels)] if batch_norm else [conv]


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """The options that decide the layers of a network; `hidden` is the MLP's, `width` the CNN's."""

    model: Literal["mlp", "cnn"]
    hidden: tuple[int, ...]
    width: int
    activation: type[nn.Module]
    batch_norm: bool
    dropout: float


def mlp(architecture: Architecture, inputs: int, classes: int) -> nn.Sequential:
    """Flatten, then Linear and activation for each width of `hidden`, then Linear: logits `[batch, classes]`.

    Batch normalisation comes before the activation (Ioffe and Szegedy 2015) and dropout after it.
    """
    widths, batch_norm = (inputs, *architecture.hidden), architecture.batch_norm
    layers: list[nn.Module] = [nn.Flatten()]
    for fan_in, fan_out in pairwise(widths):
        layers.append(nn.Linear(fan_in, fan_out, bias=not batch_norm))
        if batch_norm:
            layers.append(nn.BatchNorm1d(fan_out))
        layers.append(architecture.activation())
        if architecture.dropout:
            layers.append(nn.Dropout(architecture.dropout))
    return nn.Sequential(*layers, nn.Linear(widths[-1], classes))


def cnn(architecture: Architecture, channels: int, side: int, classes: int) -> nn.Sequential:
    """A stem that brings any side to at most 32 px, three residual stages, average: logits `[batch, classes]`."""
    width, activation, batch_norm = architecture.width, architecture.activation, architecture.batch_norm
    halvings = max(0, math.ceil(math.log2(side / STEM_OUTPUT_AT_MOST)))
    stem: list[nn.Module] = []
    for step in range(max(halvings, 1)):
        stem += convolution(width if step else channels, width, 2 if halvings else 1, batch_norm)
        stem.append(activation())
    return nn.Sequential(
        *stem,
        ResidualBlock(width, width, 1, activation, batch_norm),
        ResidualBlock(width, 2 * width, 2, activation, batch_norm),
        ResidualBlock(2 * width, 4 * width, 2, activation, batch_norm),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Dropout(architecture.dropout),
        nn.Linear(4 * width, classes),
    )


def build(
    config: TrainConfig, preprocessing: Preprocessing, normalization: Normalization, classes: int
) -> nn.Sequential:
    """The network of a run: uint8 images `[batch, height, width, channels]` -> logits `[batch, classes]`."""
    height, width, channels = preprocessing.height, preprocessing.width, preprocessing.channels
    architecture = Architecture(
        model=config.model,
        hidden=config.hidden,
        width=config.width,
        activation=ACTIVATIONS[config.activation],
        batch_norm=config.normalizes_batches,
        dropout=config.dropout,
    )
    if architecture.model == "mlp":
        body = mlp(architecture, height * width * channels, classes)
    else:
        body = cnn(architecture, channels, max(height, width), classes)
    return nn.Sequential(Normalize(normalization), body)


def settings(
    config: TrainConfig, preprocessing: Preprocessing, normalization: Normalization, classes: tuple[str, ...]
) -> dict[str, JsonValue]:
    """The options that `build` uses and the meaning of the outputs, as plain values for a checkpoint."""
    size: dict[str, JsonValue] = {"hidden": list(config.hidden)} if config.model == "mlp" else {"width": config.width}
    return {
        "model": {
            "model": config.model,
            **size,
            "activation": config.activation,
            "batch_norm": config.normalizes_batches,
            "dropout": config.dropout,
        },
        "classes": list(classes),
        "preprocessing": asdict(preprocessing),
        "normalization": asdict(normalization),
    }


def freeze(model: nn.Sequential) -> None:
    """Freeze all layers but the last."""
    model.requires_grad_(False)
    model[1][-1].requires_grad_(True)  # type: ignore[index]


def train_mode(model: nn.Module) -> None:
    """Training mode, except for frozen batch normalisation, which keeps and uses its running statistics."""
    model.train()
    for module in model.modules():
        if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d, nn.SyncBatchNorm)):
            module.train(module.weight.requires_grad)


def predict(model: nn.Module, images: Images, indices: Indices | None = None) -> Float32[np.ndarray, "indices classes"]:
    """Softmax of the model's logits."""
    return softmax(logits(model, images, indices), axis=1)


def logits(model: nn.Module, images: Images, indices: Indices | None = None) -> Float32[np.ndarray, "indices classes"]:
    """The model's output before the softmax, in float32 without TF32, computed on the model's own device.

    For the images `indices`, by default all; one batch at a time is copied.
    """
    device = next(model.parameters()).device
    training = model.training
    model.eval()
    rows = []
    with torch.inference_mode(), torch.backends.cudnn.flags(allow_tf32=False):
        for batch in _batches(images, np.arange(len(images)) if indices is None else indices):
            rows.append(model(torch.from_numpy(batch).to(device)).float().cpu().numpy())
    model.train(training)
    return np.concatenate(rows)


def _batches(images: Images, indices: Indices) -> Iterator[Images]:
    for start in range(0, max(len(indices), 1), INFERENCE_BATCH):  # of none, one batch of none
        yield copied(images, indices[start : start + INFERENCE_BATCH])
