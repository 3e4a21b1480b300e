"""What is known of each image file before it is an image to train on."""

from dataclasses import dataclass

import cv2
import numpy as np
from jaxtyping import UInt8

from serving import contract
from serving.contract import Decoded, Digest
from training import duplicates
from training.duplicates import Fingerprint

Raw = bytes | UInt8[np.ndarray, "..."]
"""An image as `Source.read` gives it: encoded, or pixels `[height, width]` or `[height, width, channels]`."""
ARRAY = "array"
"""Format of an image that came as pixels, not as a file."""


@dataclass(frozen=True, kw_only=True)
class ImageFile:
    """One readable image: its header, mean colour (red, green, blue; 0 to 255) and what it is recognised by.

    `bytes` counts the file's, 0 where there is none. `digest` is of the decoded pixels: a PNG of a JPEG's pixels has
    the JPEG's.
    """

    format: str
    height: int
    width: int
    mode: str
    orientation: int
    bytes: int
    colour: tuple[float, float, float]
    digest: Digest
    fingerprint: Fingerprint


def read(raw: Raw) -> tuple[ImageFile, Decoded]:
    """One image -> what is known of it, and its decoded pixels, RGB. Raises ImageError."""
    pixels = decode(raw)
    if isinstance(raw, bytes):
        header = contract.read_header(raw)
    else:
        mode = "RGB" if raw.ndim == 3 and raw.shape[2] == 3 else "L"
        header = contract.Header(format=ARRAY, height=raw.shape[0], width=raw.shape[1], mode=mode, orientation=1)
    red, green, blue, _ = cv2.mean(pixels)
    return ImageFile(
        format=header.format,
        height=header.height,
        width=header.width,
        mode=header.mode,
        orientation=header.orientation,
        bytes=len(raw) if isinstance(raw, bytes) else 0,
        colour=(red, green, blue),
        digest=contract.pixel_digest(pixels),
        fingerprint=duplicates.fingerprint(pixels),
    ), pixels


def decode(raw: Raw) -> Decoded:
    """Decoded RGB pixels `[height, width, 3]` of one image; its luma is what `decode` would give as gray.

    Raises ImageError.
    """
    return contract.decode(raw) if isinstance(raw, bytes) else contract.as_channels(raw, 3)
