"""Golden examples: drawn images with known results, which the service replays whenever it opens the file.

They are drawn, not taken from the data, because the file travels and nobody's picture should travel in it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import numpy as np
from PIL import Image
from torch import nn

from serving.contract.card.model_card import Golden
from serving.contract.decode import Preprocessing, pixel_digest
from serving.contract.scene import Scene, decoded
from training.models.prediction import predict

ORIENTATION = 274
"""The tag of EXIF (TIFF 6.0)."""
CANDIDATES = 4
"""Number of scenes, of which each kind takes the one on whose label the model is least sure: near 1, probabilities hide
changes of the logits."""


@dataclass(frozen=True, kw_only=True)
class GoldenKind:
    """A kind of file: what a service that decodes or resizes otherwise would get wrong."""

    height: int
    width: int
    encode: Callable[[Image.Image], bytes]


def _saved(format_name: str, **options: Any) -> Callable[[Image.Image], bytes]:
    def encode(picture: Image.Image) -> bytes:
        file = BytesIO()
        picture.save(file, format_name, **options)
        return file.getvalue()

    return encode


def _turned(picture: Image.Image) -> bytes:
    """A JPEG whose EXIF says that it must be turned by a quarter."""
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    return _saved("JPEG", quality=90, exif=exif)(picture)


def _transparent(picture: Image.Image) -> bytes:
    """A PNG whose opacity grows from the left to the right."""
    opacity = np.linspace(0, 255, picture.width).astype(np.uint8)
    picture.putalpha(Image.fromarray(np.broadcast_to(opacity, (picture.height, picture.width))))
    return _saved("PNG")(picture)


def _deep(picture: Image.Image) -> Image.Image:
    """Gray of 16 bits: lightness, and red in the lower eight."""
    red, *_ = picture.split()
    return Image.fromarray(np.asarray(picture.convert("L"), np.uint16) * 256 + np.asarray(red))


KINDS = (
    GoldenKind(height=61, width=97, encode=_saved("PNG")),
    GoldenKind(height=64, width=48, encode=_transparent),
    GoldenKind(height=80, width=112, encode=_saved("JPEG", quality=90, subsampling="4:4:4")),
    # Colour at half the resolution, as cameras save it: decoders differ in how they double it.
    GoldenKind(height=450, width=600, encode=_saved("JPEG", quality=75, subsampling="4:2:0")),
    GoldenKind(height=96, width=72, encode=_turned),
    GoldenKind(height=90, width=90, encode=lambda picture: _saved("JPEG", quality=90)(picture.convert("L"))),
    GoldenKind(height=88, width=66, encode=_saved("WEBP", quality=80)),
    GoldenKind(height=40, width=40, encode=_saved("BMP")),
    GoldenKind(height=56, width=80, encode=lambda picture: _saved("TIFF", compression="tiff_lzw")(_deep(picture))),
    GoldenKind(height=72, width=60, encode=lambda picture: _saved("GIF", transparency=0)(picture.quantize(64))),
)
PHOTOGRAPH = Scene(height=3000, width=4000, seed=12)
"""As large as a telephone's; drawn by the service, too, because it would be megabytes in the file."""


def goldens(model: nn.Sequential, preprocessing: Preprocessing) -> tuple[Golden, ...]:
    """A golden example of each kind of file, and one of 12 megapixels that is not a file."""
    chosen = [
        min((_example(model, preprocessing, image) for image in _candidates(number, kind)), key=_sureness)
        for number, kind in enumerate(KINDS)
    ]
    return (*chosen, _example(model, preprocessing, PHOTOGRAPH))


def _candidates(number: int, kind: GoldenKind) -> list[bytes]:
    seeds = range(number * CANDIDATES, (number + 1) * CANDIDATES)
    scenes = [Scene(height=kind.height, width=kind.width, seed=seed).draw() for seed in seeds]
    return [kind.encode(Image.fromarray(scene)) for scene in scenes]


def _example(model: nn.Sequential, preprocessing: Preprocessing, image: bytes | Scene) -> Golden:
    pixels = decoded(image, preprocessing)
    fitted = preprocessing.fitted(pixels)
    [probabilities] = predict(model, fitted[np.newaxis])
    return Golden(
        image=image,
        decoded=pixel_digest(pixels),
        pixels=pixel_digest(fitted),
        probabilities=tuple(map(float, probabilities)),
    )


def _sureness(example: Golden) -> float:
    return max(example.probabilities)
