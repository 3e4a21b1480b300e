"""Albumentations: the random pipeline of training, and the reference pipeline that witnesses the parity proof.

No other file imports Albumentations. 2.0.8 is its last MIT release.
"""

import random

import albumentations as A
import cv2
import numpy as np
from jaxtyping import UInt8

from serving.contract import INTERPOLATION_FLAGS, Channels, Normalization, Preprocessing


def policy(name: str | None, channels: Channels) -> A.Compose | None:
    """The random changes of `--augment`, uint8 in, uint8 of the same shape out; None for `none`."""
    border = cv2.BORDER_REFLECT_101
    shift = {"x": (-0.06, 0.06), "y": (-0.06, 0.06)}
    if name == "light":
        return A.Compose(
            [
                A.Affine(scale=(0.9, 1.1), translate_percent=shift, rotate=(-10, 10), border_mode=border, p=0.5),
                A.RandomBrightnessContrast(brightness_limit=0.15, contrast_limit=0.15, p=0.3),
            ]
        )
    if name == "strong":
        colour = [A.HueSaturationValue(hue_shift_limit=6, sat_shift_limit=20, val_shift_limit=0, p=0.5)]
        side = (0.1, 0.25)
        return A.Compose(
            [
                A.SquareSymmetry(p=1),
                A.Affine(scale=(0.8, 1.2), translate_percent=shift, rotate=(-30, 30), border_mode=border, p=0.9),
                A.RandomBrightnessContrast(brightness_limit=0.2, contrast_limit=0.2, p=0.7),
                *(colour if channels == 3 else []),
                A.GaussianBlur(blur_limit=(3, 3), p=0.1),
                A.CoarseDropout(num_holes_range=(1, 2), hole_height_range=side, hole_width_range=side, p=0.3),
            ]
        )
    return None


def apply(transform: A.Compose, image: UInt8[np.ndarray, "h w c"], *key: int) -> UInt8[np.ndarray, "h w c"]:
    """Change one image by draws that depend on `key` (seed, epoch, image) alone, not on who draws or when."""
    generator = np.random.default_rng(key)
    transform.set_random_state(generator, random.Random(int(generator.integers(2**63))))
    changed: np.ndarray = transform(image=image)["image"]
    return changed


def reference(preprocessing: Preprocessing, normalization: Normalization) -> A.Compose:
    """Resize, Normalize, ToTensorV2 by Albumentations itself: decoded uint8 pixels -> tensor `[channels, h, w]`."""
    return A.Compose(
        [
            A.Resize(
                preprocessing.height,
                preprocessing.width,
                interpolation=INTERPOLATION_FLAGS[preprocessing.interpolation],
            ),
            A.Normalize(
                mean=normalization.mean,
                std=normalization.std,
                max_pixel_value=normalization.max_pixel_value,
                normalization=normalization.mode,
            ),
            A.ToTensorV2(),
        ]
    )
