"""Albumentations: the random pipeline of training, and the reference pipeline of the parity proof.

No other file imports Albumentations. 2.0.8 is its last MIT release.
"""

import json
import random
import warnings
from pathlib import Path
from typing import Any

import albumentations as A
import cv2
import numpy as np
import yaml
from jaxtyping import UInt8

from serving.contract.card.model_card import Normalization
from serving.contract.decode import INTERPOLATION_FLAGS, Channels, Preprocessing
from training.data.augmentation.draws import STRENGTHS, Strength
from training.errors import ConfigError
from training.options.config import TrainConfig

TRIALS = 16


def policy(config: TrainConfig) -> A.Compose | None:
    """Return the random transforms of --symmetry and --augment, or None without any.

    They take and return uint8 of one shape. Raises ConfigError when --augment is a file without a pipeline.
    """
    if isinstance(config.augment, Path):
        return read(config.augment)
    changes: list[A.BasicTransform] = {
        "none": [],
        "mirror": [A.HorizontalFlip(p=0.5)],
        "square": [A.SquareSymmetry(p=1)],
    }[config.symmetry or "none"]
    if strength := STRENGTHS.get(config.augment or "none"):
        changes += _of_strength(strength, config.channels)
    return A.Compose(changes) if changes else None


def _of_strength(strength: Strength, channels: Channels) -> list[A.BasicTransform]:
    limits = (-strength.shift, strength.shift)
    changes: list[A.BasicTransform] = [
        A.Affine(
            scale=(1 - strength.scale, 1 + strength.scale),
            translate_percent={"x": limits, "y": limits},
            rotate=(-strength.degrees, strength.degrees),
            border_mode=cv2.BORDER_REFLECT_101,
            p=strength.affine,
        ),
        A.RandomBrightnessContrast(
            brightness_limit=strength.brightness_by, contrast_limit=strength.brightness_by, p=strength.brightness
        ),
    ]
    if strength.cut_out:
        sides = {"hole_height_range": strength.box, "hole_width_range": strength.box}
        changes.append(A.CoarseDropout(num_holes_range=(1, 1), fill="random_uniform", p=strength.cut_out, **sides))
    if strength.color and channels == 3:
        shifts = {"hue_shift_limit": strength.hue, "sat_shift_limit": strength.saturation, "val_shift_limit": 0}
        changes.append(A.HueSaturationValue(**shifts, p=strength.color))
    return changes


def content(path: Path) -> Any:
    """Return the plain values in a file of `A.save`, JSON where the name ends in .json, else YAML."""
    text = path.read_text(encoding="utf-8")
    return json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)


def read(path: Path) -> A.Compose:
    """Return the pipeline that `A.save` wrote. Raises ConfigError."""
    if not path.is_file():
        raise ConfigError(f"--augment {path}: there is no such file")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # about arguments that the library wrote itself
            values = content(path)
            pipeline = A.from_dict(values)
        ignored = _ignored(values["transform"], A.to_dict(pipeline)["transform"])
    except Exception as error:  # the constructors of transforms raise any class
        reason = f"{type(error).__name__}: {error}"
        raise ConfigError(f"--augment {path}: no pipeline of Albumentations {A.__version__} ({reason})") from error
    if ignored:
        raise ConfigError(f"--augment {path}: Albumentations {A.__version__} does not know {', '.join(ignored)}")
    return pipeline if isinstance(pipeline, A.Compose) else A.Compose([pipeline])


def check(path: Path, side: int, channels: Channels) -> None:
    """Apply the pipeline of a file to noise of the run's size, as it is and with every probability set to 1.

    Raises ConfigError naming the transforms that change an image's size, type or channels, or that fail.
    """
    drawn, forced = read(path), read(path)
    _set_probabilities_to_1(forced)
    for trial in range(TRIALS):
        image = np.random.default_rng(trial).integers(0, 256, (side, side, channels), dtype=np.uint8)
        for transform in (drawn, forced):
            _try(transform, image, trial, path)


def apply(transform: A.Compose, image: UInt8[np.ndarray, "h w c"], *key: int) -> UInt8[np.ndarray, "h w c"]:
    """Transform one image. The random draws depend on `key` (seed, epoch, place) alone."""
    generator = np.random.default_rng(key)
    transform.set_random_state(generator, random.Random(int(generator.integers(2**63))))
    changed: np.ndarray = transform(image=image)["image"]
    return changed


def resizing(preprocessing: Preprocessing) -> A.Compose:
    """Bring decoded uint8 pixels to the size of the input, by Albumentations itself."""
    return A.Compose(_resizing(preprocessing))


def reference(preprocessing: Preprocessing, normalization: Normalization) -> A.Compose:
    """Resize, Normalize, ToTensorV2 by Albumentations itself: decoded uint8 pixels -> tensor `[channels, h, w]`."""
    return A.Compose(
        [
            *_resizing(preprocessing),
            A.Normalize(
                mean=normalization.mean,
                std=normalization.std,
                max_pixel_value=normalization.max_pixel_value,
                normalization=normalization.mode,
            ),
            A.ToTensorV2(),
        ]
    )


def _resizing(preprocessing: Preprocessing) -> list[A.BasicTransform]:
    height, width = preprocessing.height, preprocessing.width
    flag = INTERPOLATION_FLAGS[preprocessing.interpolation]
    if preprocessing.fit == "stretch":
        return [A.Resize(height, width, interpolation=flag)]
    if preprocessing.fit == "crop":
        return [A.SmallestMaxSize(max_size_hw=(height, width), interpolation=flag), A.CenterCrop(height, width)]
    longest = A.LongestMaxSize(max_size_hw=(height, width), interpolation=flag)
    return [longest, A.PadIfNeeded(height, width, border_mode=cv2.BORDER_CONSTANT, fill=preprocessing.fill)]


def _ignored(written: dict[str, Any], loaded: dict[str, Any]) -> list[str]:
    """Arguments in a file that the loaded pipeline lacks, as Transform.argument."""
    unknown = [f"{written['__class_fullname__']}.{name}" for name in written if name not in loaded]
    for inner, counterpart in zip(written.get("transforms", ()), loaded.get("transforms", ()), strict=True):
        unknown += _ignored(inner, counterpart)
    return unknown


def _set_probabilities_to_1(composition: A.BaseCompose) -> None:
    for transform in composition.transforms:
        transform.p = 1.0
        if isinstance(transform, A.BaseCompose):
            _set_probabilities_to_1(transform)


def _try(transform: A.Compose, image: np.ndarray, seed: int, path: Path) -> None:
    expected, changed, result = _kind(image), [], image
    transform.set_random_seed(seed)
    for step in transform.transforms:
        before, name = _kind(result), type(step).__name__
        try:
            result = step(image=result)["image"]
        except Exception as error:  # transforms raise any class
            raise ConfigError(f"--augment {path}: {name} fails on {expected}: {error}") from error
        if _kind(result) != before:
            changed.append(name)
    if _kind(result) != expected:
        raise ConfigError(
            f"--augment {path}: size, type and channels of an image must stay {expected}, "
            f"but {', '.join(changed)} made it {_kind(result)}"
        )


def _kind(image: Any) -> str:
    """Type and shape of an array or tensor."""
    return f"{image.dtype} {tuple(image.shape)}"
