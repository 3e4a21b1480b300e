"""Start from the weights of another run."""

from pathlib import Path
from typing import Any

import torch
from torch import nn

from training.engine import checkpoint
from training.errors import CheckpointRefused

HEAD_TENSORS = 2
"""Weight and bias of the last layer."""


def transfer(model: nn.Sequential, settings: dict[str, Any], origin: Path) -> str:
    """Take the weights of `origin`, a run's folder or a .pt file, into a model that was made by `settings`.

    The first layer, normalisation, stays the model's own, and so does the last one when the classes differ. Returns a
    sentence on what was taken. Raises CheckpointRefused, with both values where something does not fit.
    """
    path = origin / "checkpoints" / "best.pt" if origin.is_dir() else origin
    state = checkpoint.load(path, torch.device("cpu"))
    if not {"model", "settings"} <= state.keys():
        raise CheckpointRefused(f"{path}: expected model and settings, got {', '.join(map(str, state))}")
    _refuse_what_does_not_fit(state["settings"], settings, path)
    body = model[1]
    weights = [tensor for name, tensor in state["model"].items() if name.startswith("1.")]
    taken = dict(zip(body.state_dict(), weights, strict=True))  # by order: their names depend on --dropout
    there, here = state["settings"]["classes"], settings["classes"]
    if there != here:
        taken = dict(list(taken.items())[:-HEAD_TENSORS])
    body.load_state_dict(body.state_dict() | taken)
    sentence = f"start  {path}: {len(taken)} of {len(weights)} tensors taken"
    return (
        sentence
        if there == here
        else f"{sentence}, the last layer is new ({len(there)} classes there, {len(here)} here)"
    )


def _refuse_what_does_not_fit(theirs: dict[str, Any], ours: dict[str, Any], path: Path) -> None:
    there, here = _shape(theirs), _shape(ours)
    differing = [
        f"{name} is {there.get(name)} there and {here.get(name)} here"
        for name in there | here
        if there.get(name) != here.get(name)
    ]
    if differing:
        raise CheckpointRefused(f"{path} does not fit: {', '.join(differing)}")


def _shape(settings: dict[str, Any]) -> dict[str, Any]:
    """The settings that the shapes of weights depend on: not dropout, classes, or the numbers of the normalisation."""
    model = {name: value for name, value in settings["model"].items() if name != "dropout"}
    images = {f"image {name}": value for name, value in settings["preprocessing"].items()}
    return model | images | {"normalization": settings["normalization"]["mode"]}
