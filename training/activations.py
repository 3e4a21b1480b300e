"""What the layers of a network give for a batch of images: the spread of their activations, and units that are dead."""

from dataclasses import dataclass
from functools import partial

import numpy as np
from jaxtyping import Float32, UInt8
from torch import Tensor, nn

from training import models

VALUES_AT_MOST = 100_000


@dataclass(frozen=True, kw_only=True)
class Activations:
    """What one activation function gave."""

    layer: str
    values: Float32[np.ndarray, " values"]
    """Evenly spaced ones where there are more than 100,000."""
    dead: float | None
    """Share of the units, or channels, of a ReLU that are zero wherever one looks in the batch; None of others."""


def observe(model: nn.Module, images: UInt8[np.ndarray, "batch height width channels"]) -> list[Activations]:
    """What every activation function of the model gives for these images in evaluation, layer by layer.

    The hooks are gone when this returns.
    """
    seen: list[Activations] = []
    hooks = [
        layer.register_forward_hook(partial(_note, seen, name))
        for name, layer in model.named_modules()
        if type(layer) in models.ACTIVATIONS.values()
    ]
    try:
        models.logits(model, images)
    finally:
        for hook in hooks:
            hook.remove()
    return seen


def _note(seen: list[Activations], name: str, layer: nn.Module, _: tuple[Tensor, ...], output: Tensor) -> None:
    every = -(-output.numel() // VALUES_AT_MOST)
    units = output.transpose(0, 1).flatten(1)
    dead = float((units == 0).all(1).float().mean()) if isinstance(layer, nn.ReLU) else None
    values = output.flatten()[::every].float().cpu().numpy()
    seen.append(Activations(layer=name, values=values, dead=dead))
