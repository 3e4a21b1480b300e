"""Backbones: the classification architectures of timm, without their heads. No other file imports timm.

timm is imported when a backbone is needed: it takes two seconds, which runs of the small networks do without.
"""

import difflib
import functools
import importlib
import importlib.util
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn

from training.errors import ConfigError
from training.options.config import TrainConfig

NAMES_SHOWN = 5


def timm() -> ModuleType:
    """The library, after the operators that its import needs were declared."""
    _declare_torchvision_operators()
    return importlib.import_module("timm")


def check(config: TrainConfig) -> TrainConfig:
    """Check --model before the data is read; a size that the architecture fixes becomes --image-size.

    Raises ConfigError with the nearest names, or with the size that is needed.
    """
    if config.own_network or config.model == "auto":
        return config
    facts = pretrained_facts(config.model)
    own_side = facts.input_size[1]
    if not facts.fixed_input_size:
        # Frozen features are good at the size that they were trained at.
        at_own_side = config.freeze and config.pretrained and config.image_size is None
        if config.image_size is not None:
            create(config, config.image_size, config.channels)
        return replace(config, image_size=own_side) if at_own_side else config
    if config.image_size not in (None, own_side):
        try:
            create(config, config.image_size or own_side, config.channels)
        except ConfigError as error:
            raise ConfigError(
                f"--image-size: {config.model} takes images of {own_side} px alone, got {config.image_size}"
            ) from error
    return replace(config, image_size=config.image_size or own_side)


def pretrained_facts(name: str) -> Any:
    """What timm knows of an architecture and its default weights: `timm.models.PretrainedCfg`. Raises ConfigError."""
    library = timm()
    known = [*library.list_models(), *library.list_pretrained()]
    if name in known:
        return library.get_pretrained_cfg(name)
    begin_alike = [one for one in known if one.startswith(name.partition(".")[0])]
    nearest = begin_alike or difflib.get_close_matches(name, ["mlp", "cnn", "auto", *known], NAMES_SHOWN, cutoff=0.5)
    near = f"; near it are {', '.join(nearest[:NAMES_SHOWN])}" if nearest else ""
    raise ConfigError(f"--model: expected auto, mlp, cnn or an architecture of timm, got {name}{near}")


def create(config: TrainConfig, side: int, channels: int) -> tuple[nn.Module, int]:
    """The body of an architecture with random weights, and the number of its features `[batch, features]`.

    Raises ConfigError where the architecture cannot be made by these options.
    """
    body = make(config, side, channels, classes=0)
    training = body.training
    with torch.no_grad():
        try:
            features = body.eval()(torch.zeros(1, channels, side, side))
        except (RuntimeError, AssertionError, ValueError) as error:
            raise ConfigError(f"--model {config.model}: takes no images of {side} px ({error})") from error
    if features.ndim != 2:
        raise ConfigError(
            f"--model {config.model}: expected features of shape [batch, features], got {list(features.shape)}"
        )
    return body.train(training), features.shape[1]


def make(config: TrainConfig, side: int, channels: int, classes: int, **more: Any) -> nn.Module:
    """The whole architecture, or its body alone for 0 classes. Raises ConfigError."""
    options: dict[str, Any] = {"img_size": side} if pretrained_facts(config.model).fixed_input_size else {}
    if config.drop_path:
        options["drop_path_rate"] = config.drop_path
    try:
        model: nn.Module = timm().create_model(config.model, num_classes=classes, in_chans=channels, **options, **more)
    except (TypeError, AssertionError) as error:
        raise ConfigError(
            f"--model {config.model}: cannot be made with {options or 'these options'} ({error})"
        ) from error
    return model


def has_drop_path(name: str) -> bool:
    """Whether an architecture of timm has residual blocks that can be skipped at random."""
    try:
        with torch.device("meta"):  # nothing is computed or kept
            timm().create_model(name, drop_path_rate=0.1)
    except TypeError:
        return False
    return True


def for_export(model: nn.Module) -> nn.Module:
    """The same function with merged branches, where an architecture has branches for training alone (RepVGG)."""
    return timm().utils.reparameterize_model(model, inplace=True) if _is_of_timm(model) else model


def synchronize_statistics(model: nn.Module) -> None:
    """Replace batch normalisation by SyncBatchNorm; torch's own conversion would lose the activations in timm's."""
    convert = timm().layers.convert_sync_batchnorm if _is_of_timm(model) else nn.SyncBatchNorm.convert_sync_batchnorm
    convert(model)


def not_decayed(model: nn.Module) -> Iterator[nn.Parameter]:
    """Weights that timm exempts from weight decay: positions, class tokens, biases of attention."""
    for part in model.modules():
        if callable(exempt := getattr(part, "no_weight_decay", None)):
            names = exempt()
            yield from (parameter for name, parameter in part.named_parameters() if name in names)


def _is_of_timm(model: nn.Module) -> bool:
    return any(type(module).__module__.startswith("timm.") for module in model.modules())


@functools.cache
def _declare_torchvision_operators() -> None:
    """Declare two operators that torchvision, which timm imports, decorates at its import.

    PyPI's torchvision is built for a CUDA build of torch. Beside a CPU build its compiled operators do not load, and
    its import fails ("operator torchvision::nms does not exist"). Nothing here calls them. Where they load, this does
    nothing.
    """
    spec = importlib.util.find_spec("torchvision")
    assert spec is not None, "timm requires torchvision"
    [folder] = spec.submodule_search_locations or [""]
    compiled = next(Path(folder).glob("_C*.so"), None)
    try:
        if compiled is not None:
            torch.ops.load_library(str(compiled))  # type: ignore[no-untyped-call]
            return
    except OSError:
        pass
    library = torch.library.Library("torchvision", "DEF")  # type: ignore[no-untyped-call]
    for name in ("nms", "qnms"):
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")  # type: ignore[no-untyped-call]
    _declared.append(library)


_declared: list[torch.library.Library] = []
"""Operators live as long as the object that declared them."""
