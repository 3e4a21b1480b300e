"""The last checkpoint of a run, and whether two are equal."""

from pathlib import Path
from typing import Any

import torch

from training.engine import checkpoint


def last(run: Path) -> dict[str, Any]:
    return checkpoint.load(run / "checkpoints" / "last.pt", torch.device("cpu"))


def same(one: object, other: object) -> bool:
    """Equal to the last bit, but for how long it took."""
    if isinstance(one, torch.Tensor):
        return isinstance(other, torch.Tensor) and torch.equal(one, other)
    if isinstance(one, dict):
        assert isinstance(other, dict)
        assert one.keys() == other.keys()
        return all(same(one[key], other[key]) for key in one if key not in ("images_per_second", "seconds"))
    if isinstance(one, (list, tuple)):
        assert isinstance(other, (list, tuple))
        return len(one) == len(other) and all(map(same, one, other))
    return one == other


def furthest(one: Path, other: Path) -> float:
    """The largest difference between the weights of two runs, the averaged ones included."""
    ours, theirs = last(one), last(other)
    return max(
        float((ours[part][name].double() - tensor.double()).abs().max())
        for part in ("weights", "model")
        for name, tensor in theirs[part].items()
    )
