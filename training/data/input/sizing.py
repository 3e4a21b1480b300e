"""The model and the size of its input where the options leave them open: by the images' own sizes."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from serving.contract.formats.image_header import MIN_SIDE
from training.options.choices import OWN_NETWORKS
from training.options.config import TrainConfig

PHOTOGRAPH_SIDE = 96
"""Images whose median shorter side has at least as many pixels are photographs: a backbone, trained on photographs,
does better on them than a small network from scratch (training/README.md has the figures)."""
BACKBONE = "tf_efficientnet_lite0"
"""Its weights come as a package with the trainer, and it was made for CPUs and eight bits."""
BACKBONE_SIDE, FROZEN_SIDE = 128, 224
"""Sides of a backbone's input, the second with --freeze: frozen features are good at the size of their training."""
OWN_SIDE_AT_MOST = 64

Size = tuple[int, int]
"""Height and width in pixels."""


@dataclass(frozen=True, kw_only=True)
class Sizing:
    """The model and the side in pixels of its input."""

    model: str
    side: int
    reason: str = ""
    """Why --model auto chose this model; empty where it was not asked."""


def choose_sizing(config: TrainConfig, sizes: Sequence[Size]) -> Sizing:
    """Decide by the sizes of the readable images; without any, they count as small."""
    model, reason = config.model, ""
    if model == "auto":
        model, reason = _model(config, sizes)
    backbone_side = FROZEN_SIDE if config.freeze else BACKBONE_SIDE
    side = config.image_size or (_own_side(sizes) if model in OWN_NETWORKS else backbone_side)
    return Sizing(model=model, side=side, reason=reason)


def _model(config: TrainConfig, sizes: Sequence[Size]) -> tuple[str, str]:
    if layers := config.layer_options:
        family, given = ("mlp", "hidden") if "hidden" in layers else ("cnn", layers[0])
        return family, f"--{given.replace('_', '-')} is an option of its layers"
    side = median(min(size) for size in sizes) if sizes else 0
    if side >= PHOTOGRAPH_SIDE:
        return BACKBONE, f"photographs: the median shorter side is {side:.0f} px, at least {PHOTOGRAPH_SIDE}"
    return "cnn", f"small images: the median shorter side is {side:.0f} px, less than {PHOTOGRAPH_SIDE}"


def _own_side(sizes: Sequence[Size]) -> int:
    """The side that all images share if it is one of at most 64 px, else 64."""
    sides = {height if height == width and MIN_SIDE <= height <= OWN_SIDE_AT_MOST else None for height, width in sizes}
    side = sides.pop() if len(sides) == 1 else None
    return side or OWN_SIDE_AT_MOST
