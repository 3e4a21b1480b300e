"""One image: decoded, and what is recorded of its file."""

from dataclasses import dataclass

import cv2
import numpy as np
from jaxtyping import UInt8

from serving.contract.decode import (
    Decoded,
    Digest,
    as_channels,
    checked_header,
    decode,
    decode_checked,
    identifying_values,
    pixel_digest,
)
from serving.contract.formats.depth import SHIFTED, Depth
from serving.contract.formats.image_header import Header, ImageError

Raw = bytes | UInt8[np.ndarray, "..."]
"""An image as `Source.read` returns it: encoded, or pixels `[height, width]` or `[height, width, channels]`."""
ARRAY = "array"
"""Format of an image that came as pixels, not as a file."""
UNREADABLE = (ImageError, FileNotFoundError, PermissionError)
"""Errors that exclude one image. Any other OSError is a fault of the storage and ends the run."""


@dataclass(frozen=True, kw_only=True, slots=True)  # of a million images each
class ImageFile:
    """One readable image: its header and mean colour (red, green, blue; 0 to 255).

    `bytes` is the size of the file, 0 where there is none. `digest` is that of the decoded pixels: a PNG file with the
    pixels of a JPEG file has the same digest. Of an image of more than 8 bits, digest and colour are those of its
    stored values (`identifying_values`).
    """

    format: str
    height: int
    width: int
    mode: str
    orientation: int
    bytes: int
    colour: tuple[float, float, float]
    digest: Digest
    bits: int = 8
    """Bits of a value: 16, or 8 for any smaller number, too."""


def read_image(raw: Raw, depth: Depth = SHIFTED) -> tuple[ImageFile, Decoded]:
    """Return the facts about one image and its decoded RGB pixels `[height, width, 3]`. Raises ImageError."""
    if isinstance(raw, bytes):
        header = checked_header(raw)
        pixels = decode_checked(raw, header, depth=depth)
        values = identifying_values(raw, header, pixels)
    else:
        mode = "RGB" if raw.ndim == 3 and raw.shape[2] == 3 else "L"
        pixels, header = as_channels(raw, 3), Header(format=ARRAY, height=raw.shape[0], width=raw.shape[1], mode=mode)
        values = pixels
    red, green, blue = _mean_colour(values)
    return ImageFile(
        format=header.format,
        height=header.height,
        width=header.width,
        mode=header.mode,
        orientation=header.orientation,
        bytes=len(raw) if isinstance(raw, bytes) else 0,
        colour=(red, green, blue),
        digest=pixel_digest(values),
        bits=header.bits,
    ), pixels


def _mean_colour(values: np.ndarray) -> tuple[float, float, float]:
    """Red, green and blue, 0 to 255, of RGB pixels, or of values of 16 bits, which may be gray and have opacity."""
    means = cv2.mean(values)
    if values.dtype == np.uint8:
        return means[0], means[1], means[2]
    red, green, blue = (mean / 257 for mean in (means[:3] if values.shape[2] > 2 else means[:1] * 3))
    return red, green, blue


def to_rgb(raw: Raw, depth: Depth = SHIFTED) -> Decoded:
    """Return the decoded RGB pixels `[height, width, 3]` of one image. Raises ImageError.

    Their luma equals what `decode` returns for one channel.
    """
    return decode(raw, depth=depth) if isinstance(raw, bytes) else as_channels(raw, 3)
