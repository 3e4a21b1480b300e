"""Measurements inside a network on a batch of images: activations, dead units, gradients before the first step."""

import copy
import math
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float32, Int64, UInt8
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from training.models import prediction

VALUES_AT_MOST = 100_000
ACTIVATIONS = ("torch.nn.modules.activation", "timm.layers.activations")
"""Where the classes of activation functions are, timm's also in modules whose names begin so."""
NO_ACTIVATIONS = (nn.MultiheadAttention, nn.Softmax, nn.LogSoftmax)
"""Classes of these modules that are none."""


@dataclass(frozen=True, kw_only=True)
class Activations:
    """The output of one activation function."""

    layer: str
    values: Float32[np.ndarray, " values"]
    """Evenly spaced ones where there are more than 100,000."""
    dead: float | None
    """Share of the units, or channels, of a ReLU that are zero in the whole batch; None for other functions."""


@dataclass(frozen=True, kw_only=True)
class AtStart:
    """One linear or convolutional layer before the first step, on a batch of training images."""

    layer: str
    output_variance: float | None
    """Variance of the layer's output, before normalisation and activation."""
    gradient_variance: float | None
    """Variance of the gradient of one image's loss by the layer's output; it vanishes or explodes with depth."""
    weight_gradient_norm: float | None


def at_start(
    model: nn.Module, images: UInt8[np.ndarray, "batch height width channels"], labels: Int64[np.ndarray, " batch"]
) -> list[AtStart]:
    """How signal and gradient pass through an untrained network, layer by layer in forward order.

    Of a copy in training mode: the model, its statistics and torch's random state stay as they are. None where a value
    is not finite.
    """
    outputs: dict[str, Tensor] = {}
    device = next(model.parameters()).device
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        probe = copy.deepcopy(model).train().requires_grad_(True)
        layers = {name: layer for name, layer in probe.named_modules() if isinstance(layer, (nn.Linear, nn.Conv2d))}
        for name, layer in layers.items():
            layer.register_forward_hook(partial(_keep, outputs, name))
        logits = probe(torch.from_numpy(images).to(device))
        cross_entropy(logits, torch.from_numpy(labels).to(device)).backward()  # type: ignore[no-untyped-call]
    return [
        AtStart(
            layer=name,
            output_variance=_finite(output.detach().var()),
            gradient_variance=_finite((_gradient(output) * len(images)).var()),
            weight_gradient_norm=_finite(_gradient(layers[name].weight).norm()),
        )
        for name, output in outputs.items()
    ]


def observe(model: nn.Module, images: prediction.Images | prediction.Features) -> list[Activations]:
    """The output of every activation function for these images, or features, in evaluation mode, layer by layer.

    All hooks are removed before this returns. Nothing is predicted where there is no such function.
    """
    activations = {name: layer for name, layer in model.named_modules() if _is_activation(layer)}
    if not activations:
        return []
    parts: dict[str, list[_Part]] = {}
    passes: list[None] = []
    hooks = [model.register_forward_pre_hook(lambda *_: passes.append(None))]
    hooks += [
        layer.register_forward_hook(partial(_note, parts.setdefault(name, []), len(images)))
        for name, layer in activations.items()
    ]
    try:
        prediction.outputs(model, images)
    finally:
        for hook in hooks:
            hook.remove()
    # Some networks call one activation several times in a pass, others have one that they do not use.
    calls = {name: len(seen) // len(passes) for name, seen in parts.items()}
    return [_together(name, parts[name][call :: calls[name]]) for name in parts for call in range(calls[name])]


def _is_activation(layer: nn.Module) -> bool:
    return type(layer).__module__.startswith(ACTIVATIONS) and not isinstance(layer, NO_ACTIVATIONS)


class _Part(NamedTuple):
    """The output of one activation function for some of the images: prediction splits them where they are large."""

    values: Float32[np.ndarray, " values"]
    zero: Bool[np.ndarray, " units"] | None
    """Units, or channels, of a ReLU that are zero for all of them."""


def _together(layer: str, parts: list[_Part]) -> Activations:
    zeros = [part.zero for part in parts if part.zero is not None]
    return Activations(
        layer=layer,
        values=np.concatenate([part.values for part in parts]),
        dead=float(np.all(zeros, axis=0).mean()) if zeros else None,
    )


def _note(parts: list[_Part], images: int, layer: nn.Module, _: tuple[Tensor, ...], output: Tensor) -> None:
    every = -(-output[0].numel() * images // VALUES_AT_MOST)
    is_relu = isinstance(layer, (nn.ReLU, nn.ReLU6))
    zero = (output.amax((0, *range(2, output.ndim))) == 0).cpu().numpy() if is_relu else None
    # A copy, as a view would keep the whole output, in which a later layer may compute in place.
    parts.append(_Part(output.flatten()[::every].float().cpu().numpy().copy(), zero))


def _keep(outputs: dict[str, Tensor], name: str, layer: nn.Module, _: tuple[Tensor, ...], output: Tensor) -> None:
    output.retain_grad()
    outputs[name] = output


def _gradient(tensor: Tensor) -> Tensor:
    assert tensor.grad is not None
    return tensor.grad


def _finite(tensor: Tensor) -> float | None:
    value = float(tensor)
    return value if math.isfinite(value) else None
