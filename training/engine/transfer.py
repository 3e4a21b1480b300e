"""Start from the weights of another run."""

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from serving.contract.decode import Preprocessing
from training.engine import checkpoint, runs
from training.errors import CheckpointRefused
from training.options.choices import OWN_NETWORKS
from training.options.config import TrainConfig


def transfer(model: nn.Sequential, settings: dict[str, Any], origin: Path) -> str:
    """Take the weights of `origin`, a run's folder or a .pt file, into a model that was made by `settings`.

    The first layer, normalisation, stays the model's own, and so does the last one when the classes differ. Returns a
    sentence on what was taken. Raises CheckpointRefused, with both values where something does not fit.
    """
    path, state = _read(origin)
    _refuse_what_does_not_fit(state["settings"], settings, path)
    there, here = state["settings"]["classes"], settings["classes"]
    parts = (model[1], model[2]) if there == here else (model[1],)
    theirs = list(state["model"].items())
    taken = 0
    for number, part in enumerate(parts, 1):  # by order: names depend on --dropout
        tensors = [tensor for name, tensor in theirs if name.startswith(f"{number}.")]
        state = dict(zip(part.state_dict(), tensors, strict=True))
        _refuse_shapes(state, part.state_dict(), path)
        part.load_state_dict(state)
        taken += len(tensors)
    total = sum(not name.startswith("0.") for name, _ in theirs)
    sentence = f"start  {path}: {taken} of {total} tensors taken"
    return (
        sentence
        if there == here
        else f"{sentence}, the last layer is new ({len(there)} classes there, {len(here)} here)"
    )


def _refuse_shapes(theirs: dict[str, Tensor], ours: dict[str, Tensor], path: Path) -> None:
    """Raise CheckpointRefused for weights that depend on the size of the images, as positions of a transformer do."""
    differing = [
        f"{name} is {tuple(theirs[name].shape)} there and {tuple(tensor.shape)} here"
        for name, tensor in ours.items()
        if theirs[name].shape != tensor.shape
    ]
    if differing:
        raise CheckpointRefused(f"{path} does not fit images of this size: {', '.join(differing)}")


def inherit(config: TrainConfig) -> TrainConfig:
    """The options with the origin's size, mean and deviation unless others are given, and its model for --model auto.

    Both are shares of its --max-pixel-value, which comes with them.

    Raises CheckpointRefused.
    """
    if config.init_from is None:
        return config
    settings = _read(config.init_from)[1]["settings"]
    model = settings["model"]["model"] if config.model == "auto" else config.model
    side = config.image_size or settings["preprocessing"]["height"]
    config = replace(config, model=model, image_size=side)
    theirs = settings["normalization"]
    if config.mean or config.mean_std is not None or len(theirs["mean"]) != config.channels:
        return config
    given = config.max_pixel_value != TrainConfig.max_pixel_value
    most = config.max_pixel_value if given else theirs["max_pixel_value"]
    return replace(config, mean=tuple(theirs["mean"]), std=tuple(theirs["std"]), max_pixel_value=most)


def _read(origin: Path) -> tuple[Path, dict[str, Any]]:
    """The checkpoint of a run's folder, or a .pt file, and what it holds. Raises CheckpointRefused."""
    path = origin / runs.BEST if origin.is_dir() else origin
    if any((folder / runs.FORGOTTEN).exists() for folder in list(path.parents)[:2]):
        raise CheckpointRefused(f"--init-from {origin}: {runs.HAS_LEARNED}; start from another run")
    state = checkpoint.load(path, torch.device("cpu"))
    if not {"model", "settings"} <= state.keys():
        raise CheckpointRefused(f"{path}: expected model and settings, got {', '.join(map(str, state))}")
    return path, state


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
    """The settings for which weights were made: not dropout, classes, or the numbers of the normalisation.

    Nor the size of images for timm's architectures, most of whose weights do not depend on it: a larger size after the
    training is a usual gain (Touvron et al. 2019).
    """
    model = {name: value for name, value in settings["model"].items() if name not in ("dropout", "drop_path")}
    stored = {name: value for name, value in settings["preprocessing"].items() if name != "depth"}
    preprocessing = asdict(Preprocessing(**stored))  # an older one has no --fit
    aside = {"depth"} if model["model"] in OWN_NETWORKS else {"depth", "height", "width"}
    images = {f"image {name}": value for name, value in preprocessing.items() if name not in aside}
    return model | images | {"normalization": settings["normalization"]["mode"]}
