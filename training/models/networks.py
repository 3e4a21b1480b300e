"""The networks: normalisation, a body that turns images into features, and a head that turns features into logits."""

import math
from dataclasses import asdict
from itertools import pairwise

from jaxtyping import Float
from pydantic import JsonValue
from torch import Tensor, nn

from serving.contract.card.model_card import Normalization
from serving.contract.decode import Preprocessing
from training.models import backbones
from training.models.normalization import Normalize
from training.options.choices import Activation
from training.options.config import TrainConfig

STEM_OUTPUT_AT_MOST = 32
"""Largest side, in pixels, of the maps that the residual stages of the CNN work on."""
ACTIVATIONS: dict[Activation, type[nn.Module]] = {
    "relu": nn.ReLU,
    "leaky_relu": nn.LeakyReLU,
    "gelu": nn.GELU,
    "tanh": nn.Tanh,
    "sigmoid": nn.Sigmoid,
}


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
            # Of an odd side, whose convolution gives half of it rounded up, the last row is a mean of what is there.
            pool = nn.AvgPool2d(stride, ceil_mode=True, count_include_pad=False)
            self.shortcut = nn.Sequential(pool, *projection)
        self.activation = activation()

    def forward(self, maps: Float[Tensor, "batch in h w"]) -> Float[Tensor, "batch out h2 w2"]:
        activated: Tensor = self.activation(self.shortcut(maps) + self.body(maps))
        return activated


def convolution(in_channels: int, out_channels: int, stride: int, batch_norm: bool, kernel: int = 3) -> list[nn.Module]:
    """A convolution and the batch normalisation that makes its bias superfluous, or a convolution with bias."""
    conv = nn.Conv2d(in_channels, out_channels, kernel, stride, kernel // 2, bias=not batch_norm)
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    return [conv, nn.BatchNorm2d(out_channels)] if batch_norm else [conv]


def mlp(config: TrainConfig, inputs: int) -> nn.Sequential:
    """Flatten, then Linear and activation for each width of --hidden: features `[batch, last width]`.

    Batch normalisation comes before the activation (Ioffe and Szegedy 2015) and dropout after it.
    """
    layers: list[nn.Module] = [nn.Flatten()]
    for fan_in, fan_out in pairwise((inputs, *config.hidden)):
        layers.append(nn.Linear(fan_in, fan_out, bias=not config.normalizes_batches))
        if config.normalizes_batches:
            layers.append(nn.BatchNorm1d(fan_out))
        layers.append(ACTIVATIONS[config.activation]())
        if config.dropout:
            layers.append(nn.Dropout(config.dropout))
    return nn.Sequential(*layers)


def cnn(config: TrainConfig, channels: int, side: int) -> nn.Sequential:
    """A stem that brings any side to at most 32 px, three residual stages, average: features `[batch, 4 * width]`."""
    width, activation, batch_norm = config.width, ACTIVATIONS[config.activation], config.normalizes_batches
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
    )


def build(
    config: TrainConfig, preprocessing: Preprocessing, normalization: Normalization, classes: int
) -> nn.Sequential:
    """Normalisation, body and head: uint8 images `[batch, height, width, channels]` -> logits `[batch, classes]`.

    A calibrated model has `Calibrate` as its fourth part.
    """
    height, width, channels = preprocessing.height, preprocessing.width, preprocessing.channels
    body: nn.Module
    if config.model == "mlp":
        body, features = mlp(config, height * width * channels), config.hidden[-1]
    elif config.model == "cnn":
        body, features = cnn(config, channels, max(height, width)), 4 * config.width
    else:
        body, features = backbones.create(config, height, channels)
    # The MLP has dropout behind every hidden layer, the last one included.
    head = (
        [nn.Linear(features, classes)]
        if config.model == "mlp"
        else [nn.Dropout(config.dropout or 0.0), nn.Linear(features, classes)]
    )
    return nn.Sequential(Normalize(normalization), body, nn.Sequential(*head))


def settings(
    config: TrainConfig, preprocessing: Preprocessing, normalization: Normalization, classes: tuple[str, ...]
) -> dict[str, JsonValue]:
    """The options that `build` uses and the meaning of the outputs, as plain values for a checkpoint."""
    layers: dict[str, JsonValue]
    if config.own_network:
        size: dict[str, JsonValue] = (
            {"hidden": list(config.hidden)} if config.model == "mlp" else {"width": config.width}
        )
        layers = {**size, "activation": config.activation, "batch_norm": config.normalizes_batches}
    else:
        layers = {"drop_path": config.drop_path}
    return {
        "model": {"model": config.model, **layers, "dropout": config.dropout},
        "classes": list(classes),
        "preprocessing": asdict(preprocessing),
        "normalization": asdict(normalization),
    }


def learning_part(model: nn.Sequential, config: TrainConfig) -> nn.Sequential:
    """All of the network, or with --freeze the head alone."""
    return features_and_head(model)[1] if config.freeze else model


def features_and_head(model: nn.Sequential) -> tuple[nn.Sequential, nn.Sequential]:
    """The part of a network that turns images into features, and the rest; both share its weights and their names."""
    body, head = model[:2], model[2:]
    assert isinstance(body, nn.Sequential)
    assert isinstance(head, nn.Sequential)
    return body, head
