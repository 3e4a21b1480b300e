"""What is drawn for the random changes of a batch: numbers alone. `opencv` and `tensors` apply them.

The distributions are those of the Albumentations pipeline that `pipeline.policy` makes of the same options.
"""

from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float64, Int64, UInt8

from training.options.choices import Policy, Symmetry
from training.options.settled import SettledConfig

STREAM = 3
"""Separates these draws from others that are made from a seed, an epoch and a number."""
HUES = 180
"""OpenCV stores a hue in units of two degrees."""
ORIENTATIONS: dict[Symmetry, int] = {"none": 1, "mirror": 2, "square": 8}
"""Number of orientations, of the eight of a square: bit 1 swaps left and right, 2 up and down, 4 the two axes."""


@dataclass(frozen=True, kw_only=True)
class Strength:
    """Probabilities and limits of the changes of a policy of --augment."""

    affine: float
    """Probability of a shift, a turn and a scale together."""
    scale: float
    """Width and height are each scaled by a factor within 1 +- this."""
    shift: float
    """Along each axis, as a share of the side; whole pixels."""
    degrees: float
    brightness: float
    """Probability of a change of brightness and contrast."""
    brightness_by: float = 0.15
    """As a share of the range of values, and of the contrast."""
    cut_out: float = 0.0
    """Probability of a box of one random colour, as CoarseDropout fills it."""
    box: tuple[float, float] = (0.1, 0.25)
    """Its height and its width as shares of the side."""
    color: float = 0.0
    """Probability of a shift of hue and saturation; of images with colours only."""
    hue: float = 4.0
    """In units of two degrees."""
    saturation: float = 15.0
    """Largest change, of 255."""


STRENGTHS: dict[Policy, Strength] = {
    "light": Strength(affine=0.5, scale=0.1, shift=0.06, degrees=10, brightness=0.3),
    "strong": Strength(affine=0.7, scale=0.15, shift=0.08, degrees=15, brightness=0.4, cut_out=0.25, color=0.2),
}


@dataclass(frozen=True, kw_only=True)
class Draws:
    """What changes each image of a batch. Numbers count where the mask before them is true.

    Where `lit` is false, `contrast` and `brightness` change nothing.
    """

    orientation: Int64[np.ndarray, " batch"]
    affine: Bool[np.ndarray, " batch"]
    matrix: Float64[np.ndarray, "batch 2 3"]
    """From a pixel's column and row in the image to those in the result."""
    lit: Bool[np.ndarray, " batch"]
    contrast: Float64[np.ndarray, " batch"]
    """Factor of the values."""
    brightness: Float64[np.ndarray, " batch"]
    """Added to the values after that."""
    cut: Bool[np.ndarray, " batch"]
    box: Int64[np.ndarray, "batch 4"]
    """Top, bottom, left, right; the ends are exclusive."""
    fill: UInt8[np.ndarray, "batch channels"]
    colored: Bool[np.ndarray, " batch"]
    hue: Float64[np.ndarray, " batch"]
    saturation: Float64[np.ndarray, " batch"]

    def rows(self, rows: list[int]) -> "Draws":
        """Those of some images of the batch."""
        return Draws(**{field.name: getattr(self, field.name)[rows] for field in fields(self)})


@dataclass(frozen=True, kw_only=True)
class BatchPolicy:
    """The random changes of --symmetry and --augment for batches of `batch_size` images of `side` px.

    `of` is None where there are none, and where an Albumentations pipeline makes them image by image.
    """

    strength: Strength | None
    symmetry: Symmetry
    seed: int
    batch_size: int
    side: int
    channels: int

    @classmethod
    def of(cls, config: SettledConfig, batch_size: int) -> "BatchPolicy | None":
        """The policy that the options ask for."""
        if config.augment_on == "workers" or not config.augmented:
            return None
        assert not isinstance(config.augment, Path)
        return cls(
            strength=STRENGTHS.get(config.augment),
            symmetry=config.symmetry,
            seed=config.seed,
            batch_size=batch_size,
            side=config.image_size,
            channels=config.channels,
        )

    def draw(self, epoch: int, batch: int) -> Draws:
        """What changes the images of a batch, by seed, epoch and number of the batch alone."""
        rng = np.random.default_rng((self.seed, STREAM, epoch, batch))
        count, side = self.batch_size, self.side
        strength = self.strength or Strength(affine=0, scale=0, shift=0, degrees=0, brightness=0)
        orientation = rng.integers(0, ORIENTATIONS[self.symmetry], count)
        affine, lit, cut, colored = (
            rng.random(count) < probability
            for probability in (strength.affine, strength.brightness, strength.cut_out, strength.color)
        )
        by = strength.brightness_by
        contrast, brightness = 1 + rng.uniform(-by, by, count), 255 * rng.uniform(-by, by, count)
        return Draws(
            orientation=orientation,
            affine=affine,
            matrix=_matrices(rng, count, side, strength),
            lit=lit,
            contrast=np.where(lit, contrast, 1.0),
            brightness=np.where(lit, brightness, 0.0),
            cut=cut,
            box=_boxes(rng, count, side, strength),
            fill=rng.integers(0, 256, (count, self.channels), np.uint8),
            colored=colored & (self.channels == 3),
            hue=rng.uniform(-strength.hue, strength.hue, count),
            saturation=rng.uniform(-strength.saturation, strength.saturation, count),
        )


def _matrices(rng: np.random.Generator, count: int, side: int, strength: Strength) -> Float64[np.ndarray, "count 2 3"]:
    """Scale, turn around the centre, shift: in this order."""
    scale = rng.uniform(1 - strength.scale, 1 + strength.scale, (count, 2))
    angle = np.deg2rad(rng.uniform(-strength.degrees, strength.degrees, count))
    shift = np.trunc(side * rng.uniform(-strength.shift, strength.shift, (count, 2)))
    cosine, sine = np.cos(angle), np.sin(angle)
    linear = np.stack([np.stack([cosine, sine], 1), np.stack([-sine, cosine], 1)], 1) * scale[:, None, :]
    centre = np.full(2, (side - 1) / 2)
    return np.concatenate([linear, (centre + shift - linear @ centre)[..., None]], 2)


def _boxes(rng: np.random.Generator, count: int, side: int, strength: Strength) -> Int64[np.ndarray, "count 4"]:
    sides = (side * rng.uniform(*strength.box, (count, 2))).astype(int)
    first = rng.integers(0, side - sides + 1)
    top, left = first.T
    bottom, right = (first + sides).T
    return np.stack([top, bottom, left, right], 1)
