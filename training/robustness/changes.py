"""Changes of a photograph: what another camera or another day makes of it, and what hides a part of it.

The families are those of Hendrycks and Dietterich (2019), five strengths each, applied to the decoded image before it
is resized. Images are uint8 `[height, width, channels]`, RGB or gray, before and after.
"""

from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np
from jaxtyping import Float32

from serving.contract.decode import Decoded
from serving.contract.formats.opencv import imdecode

GRAY = 128
PATCHES = 4
"""Shuffled patches a side."""
MARGIN = 0.15
"""Share of each side that is the border: the rest, 49 % of the area, is the centre."""


@dataclass(frozen=True, kw_only=True)
class Change:
    """A family of changes, and its strengths from the mildest on."""

    name: str
    unit: str
    """What a strength is."""
    strengths: tuple[float, ...]
    apply: Callable[[Decoded, float, np.random.Generator], Decoded]


def jpeg(image: Decoded, quality: float, rng: np.random.Generator) -> Decoded:
    """Compress as a JPEG of this quality, 1 to 100, and decode."""
    done, encoded = cv2.imencode(".jpg", _swapped(image), [cv2.IMWRITE_JPEG_QUALITY, int(quality)])
    assert done
    flag = cv2.IMREAD_GRAYSCALE if image.shape[2] == 1 else cv2.IMREAD_COLOR_RGB
    return imdecode(encoded.tobytes(), flag).reshape(image.shape)


def brightness(image: Decoded, factor: float, rng: np.random.Generator) -> Decoded:
    """Multiply all values."""
    return cv2.convertScaleAbs(image, alpha=factor).reshape(image.shape)


def contrast(image: Decoded, factor: float, rng: np.random.Generator) -> Decoded:
    """Bring all values nearer to the image's mean."""
    mean = float(image.mean())
    return _of_8_bits(mean + factor * (image.astype(np.float32) - mean))


def warmth(image: Decoded, share: float, rng: np.random.Generator) -> Decoded:
    """More red and less blue by this share, as under another lamp; gray images stay as they are."""
    if image.shape[2] == 1:
        return image
    gains = np.array([1 + share, 1, 1 - share], np.float32)
    return _of_8_bits(image * gains)


def coldness(image: Decoded, share: float, rng: np.random.Generator) -> Decoded:
    """Less red and more blue by this share; gray images stay as they are."""
    return warmth(image, -share, rng)


def blur(image: Decoded, share: float, rng: np.random.Generator) -> Decoded:
    """Gaussian blur whose deviation is this share of the shorter side."""
    return cv2.GaussianBlur(image, (0, 0), share * min(image.shape[:2])).reshape(image.shape)


def noise(image: Decoded, deviation: float, rng: np.random.Generator) -> Decoded:
    """Gaussian noise of this deviation in grey levels, of each value on its own."""
    drawn = rng.standard_normal(image.shape, np.float32)
    return _of_8_bits(image + deviation * drawn)


def turn(image: Decoded, degrees: float, rng: np.random.Generator) -> Decoded:
    """Turn around the centre, to either side at random; the border is mirrored."""
    height, width = image.shape[:2]
    angle = degrees * rng.choice((-1, 1))
    matrix = cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), angle, 1)
    return cv2.warpAffine(image, matrix, (width, height), borderMode=cv2.BORDER_REFLECT_101).reshape(image.shape)


def coarseness(image: Decoded, factor: float, rng: np.random.Generator) -> Decoded:
    """As by a camera that has `factor` times fewer pixels a side."""
    height, width = image.shape[:2]
    size = max(1, round(width / factor)), max(1, round(height / factor))
    small = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    return cv2.resize(small, (width, height), interpolation=cv2.INTER_LINEAR).reshape(image.shape)


def border_only(image: Decoded, _: float, rng: np.random.Generator) -> Decoded:
    """The centre is grey: what the model answers by, is not the object in it."""
    hidden, (top, left, bottom, right) = image.copy(), _centre(image)
    hidden[top:bottom, left:right] = GRAY
    return hidden


def centre_only(image: Decoded, _: float, rng: np.random.Generator) -> Decoded:
    """The border is grey."""
    hidden, (top, left, bottom, right) = np.full_like(image, GRAY), _centre(image)
    hidden[top:bottom, left:right] = image[top:bottom, left:right]
    return hidden


def without_colour(image: Decoded, _: float, rng: np.random.Generator) -> Decoded:
    """Every channel is the luma."""
    if image.shape[2] == 1:
        return image
    return np.repeat(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)[:, :, None], 3, axis=2)


def shuffled(image: Decoded, _: float, rng: np.random.Generator) -> Decoded:
    """Patches change places: texture and colours stay, form does not. Rows and columns that fill no patch stay."""
    height, width = (side // PATCHES for side in image.shape[:2])
    places = [(row * height, column * width) for row in range(PATCHES) for column in range(PATCHES)]
    moved = image.copy()
    for (top, left), source in zip(places, rng.permutation(len(places)), strict=True):
        y, x = places[source]
        moved[top : top + height, left : left + width] = image[y : y + height, x : x + width]
    return moved


def _of_8_bits(values: Float32[np.ndarray, "height width channels"]) -> Decoded:
    rounded: Decoded = values.clip(0, 255).round().astype(np.uint8)
    return rounded


def _centre(image: Decoded) -> tuple[int, int, int, int]:
    height, width = image.shape[:2]
    top, left = round(MARGIN * height), round(MARGIN * width)
    return top, left, height - top, width - left


def _swapped(image: Decoded) -> np.ndarray:
    return image if image.shape[2] == 1 else np.ascontiguousarray(image[:, :, ::-1])


DRIFTS = (
    Change(name="JPEG", unit="quality", strengths=(80, 50, 30, 15, 8), apply=jpeg),
    Change(name="darker", unit="times the brightness", strengths=(0.9, 0.8, 0.65, 0.5, 0.35), apply=brightness),
    Change(name="brighter", unit="times the brightness", strengths=(1.1, 1.2, 1.35, 1.5, 1.75), apply=brightness),
    Change(name="less contrast", unit="times the contrast", strengths=(0.9, 0.75, 0.6, 0.45, 0.3), apply=contrast),
    Change(name="warmer light", unit="more red, less blue", strengths=(0.03, 0.06, 0.1, 0.15, 0.25), apply=warmth),
    Change(name="colder light", unit="less red, more blue", strengths=(0.03, 0.06, 0.1, 0.15, 0.25), apply=coldness),
    Change(name="blur", unit="deviation, share of the side", strengths=(0.003, 0.006, 0.01, 0.02, 0.04), apply=blur),
    Change(name="noise", unit="deviation, grey levels", strengths=(4, 8, 16, 32, 64), apply=noise),
    Change(name="turned", unit="degrees", strengths=(2, 5, 10, 20, 40), apply=turn),
    Change(name="fewer pixels", unit="times fewer a side", strengths=(1.5, 2, 3, 5, 8), apply=coarseness),
)
"""What a camera, a lamp or a network may do."""

PROBES = (
    Change(name="border only", unit="", strengths=(1,), apply=border_only),
    Change(name="centre only", unit="", strengths=(1,), apply=centre_only),
    Change(name="without colour", unit="", strengths=(1,), apply=without_colour),
    Change(name="patches shuffled", unit="", strengths=(1,), apply=shuffled),
)
"""What is left of an image when a part of its information is taken: does the model look at the object?"""
