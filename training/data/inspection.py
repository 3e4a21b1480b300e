"""What is known of the image files before they are images to train on."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain
from typing import TypeVar

import cv2
import joblib
import numpy as np
from jaxtyping import UInt8
from tqdm import tqdm

from serving.contract.decode import Decoded, Digest, as_channels, decode, pixel_digest
from serving.contract.image_header import Header, ImageError, read_header
from training.data import duplicates
from training.data.duplicates import FINGERPRINT, Duplicates
from training.data.formats import Source

T = TypeVar("T")

Raw = bytes | UInt8[np.ndarray, "..."]
"""An image as `Source.read` gives it: encoded, or pixels `[height, width]` or `[height, width, channels]`."""
ARRAY = "array"
"""Format of an image that came as pixels, not as a file."""
UNREADABLE = (ImageError, FileNotFoundError, PermissionError)
"""What leaves an image out. Another OSError is the storage's, may be gone the next time, and ends the run."""
CHUNK = 10_000
"""Calls that wait for a thread at a time; each takes 2 KB."""


@dataclass(frozen=True, kw_only=True)
class ImageFile:
    """One readable image: its header and mean colour (red, green, blue; 0 to 255).

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


@dataclass(frozen=True, kw_only=True)
class Contents:
    """What reading every image once tells, whatever its label and its split are."""

    files: list[ImageFile]
    """The readable images, in order."""
    unreadable: dict[int, str]
    """Where each of the others stands in the source, and why it cannot be read."""
    duplicates: Duplicates
    """Among the readable images."""

    @property
    def positions(self) -> list[int]:
        """Where each readable image stands in the source."""
        count = len(self.files) + len(self.unreadable)
        return [position for position in range(count) if position not in self.unreadable]


def read_all(source: Source, keep: Callable[[int, Decoded], None]) -> Contents:
    """Read every image once; hand its position and decoded RGB pixels to `keep`, in several threads at a time."""

    def look(position: int) -> tuple[ImageFile, np.ndarray] | str:
        try:
            file, pixels = read(source.read(position))
        except UNREADABLE as error:
            return str(error)
        keep(position, pixels)
        return file, duplicates.fingerprint(pixels)

    found: list[ImageFile] = []
    fingerprints = np.empty(len(source.keys), FINGERPRINT)
    unreadable: dict[int, str] = {}
    for position, seen in enumerate(in_threads(look, range(len(source.keys)), "read")):
        if isinstance(seen, str):
            unreadable[position] = seen
        else:
            file, fingerprints[len(found)] = seen
            found.append(file)
    same = duplicates.find(fingerprints[: len(found)], [file.digest for file in found])
    return Contents(files=found, unreadable=unreadable, duplicates=same)


def in_threads(act: Callable[[int], T], positions: Sequence[int], told: str) -> Iterator[T]:
    """What `act` gives for the image at each position, in order. In threads, because OpenCV releases the lock."""
    parts = (positions[start : start + CHUNK] for start in range(0, len(positions), CHUNK))
    pool = ThreadPoolExecutor(joblib.cpu_count())
    try:
        done = chain.from_iterable(pool.map(act, part) for part in parts)
        yield from tqdm(done, told, len(positions), unit=" images", disable=None, leave=False)
    finally:
        pool.shutdown(cancel_futures=True)  # who is told to stop does not wait for what has not begun


def read(raw: Raw) -> tuple[ImageFile, Decoded]:
    """One image -> what is known of it, and its decoded pixels, RGB. Raises ImageError."""
    pixels = to_rgb(raw)
    if isinstance(raw, bytes):
        header = read_header(raw)
    else:
        mode = "RGB" if raw.ndim == 3 and raw.shape[2] == 3 else "L"
        header = Header(format=ARRAY, height=raw.shape[0], width=raw.shape[1], mode=mode, orientation=1)
    red, green, blue, _ = cv2.mean(pixels)
    return ImageFile(
        format=header.format,
        height=header.height,
        width=header.width,
        mode=header.mode,
        orientation=header.orientation,
        bytes=len(raw) if isinstance(raw, bytes) else 0,
        colour=(red, green, blue),
        digest=pixel_digest(pixels),
    ), pixels


def to_rgb(raw: Raw) -> Decoded:
    """Decoded RGB pixels `[height, width, 3]` of one image; its luma is what `decode` would give as gray.

    Raises ImageError.
    """
    return decode(raw) if isinstance(raw, bytes) else as_channels(raw, 3)
