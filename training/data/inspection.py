"""Read every image file once: its header, its digest, its fingerprint, and its pixels, resized for training."""

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from typing import BinaryIO, TypeVar

import cv2
import joblib
import numpy as np
from jaxtyping import Int64, UInt8
from pydantic import TypeAdapter
from tqdm import tqdm

from serving.contract.decode import Decoded, Digest, Preprocessing, as_channels, decode_with_header, pixel_digest
from serving.contract.image_header import MIN_SIDE, Header, ImageError, read_header
from training.config import TrainConfig
from training.data import duplicates
from training.data.cache import Cache
from training.data.duplicates import FINGERPRINT, Duplicates
from training.data.formats import Source, Split

T = TypeVar("T")

Raw = bytes | UInt8[np.ndarray, "..."]
"""An image as `Source.read` returns it: encoded, or pixels `[height, width]` or `[height, width, channels]`."""
ARRAY = "array"
"""Format of an image that came as pixels, not as a file."""
UNREADABLE = (ImageError, FileNotFoundError, PermissionError)
"""Errors that exclude one image. Any other OSError is a fault of the storage and ends the run."""
OWN_SIDE_AT_MOST = 64

_CONTENTS = "contents"
_IMAGES = "images"


@dataclass(frozen=True, kw_only=True)
class ImageFile:
    """One readable image: its header and mean colour (red, green, blue; 0 to 255).

    `bytes` is the size of the file, 0 where there is none. `digest` is that of the decoded pixels: a PNG file with the
    pixels of a JPEG file has the same digest.
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
    """What the files hold. It does not depend on labels and splits."""

    files: list[ImageFile]
    """The readable images, in the order of the source."""
    unreadable: dict[int, str]
    """Position in the source of each image that cannot be read, and the reason."""
    duplicates: Duplicates
    """Pairs of readable images, counted as in `files`."""

    @property
    def positions(self) -> list[int]:
        """Position in the source of each readable image."""
        count = len(self.files) + len(self.unreadable)
        return [position for position in range(count) if position not in self.unreadable]

    @property
    def own_side(self) -> int:
        """The side in pixels that all images share if it is one of at most 64 px, else 64."""
        sides = {_own_side(file.height, file.width) for file in self.files}
        return sides.pop() if len(sides) == 1 else OWN_SIDE_AT_MOST


@dataclass(frozen=True, kw_only=True)
class ImageSet:
    """The readable images of a source: all lists have one entry for each, in the order of the source."""

    name: str
    identity: str
    """`Source.identity`."""
    keys: list[str]
    labels: Int64[np.ndarray, " images"]
    """Index in `classes`."""
    classes: tuple[str, ...]
    groups: list[str]
    """Images of one group must not be in two splits. An empty string is no group."""
    source_splits: list[Split | None]
    """The split that the source assigns; None where it assigns none."""
    files: list[ImageFile]
    duplicates: Duplicates
    read: Callable[[int], Decoded]
    """Read image i again, decoded to RGB and not resized."""
    unreadable: dict[str, str] = field(default_factory=dict)
    """Key of each image that cannot be read, and the reason."""
    ignored: list[str] = field(default_factory=list)
    """`Source.ignored`."""


class PixelFile:
    """Writes resized images as rows of one .npy file: uint8 `[images, height, width, channels]`.

    Several threads may write at a time. Rows are written, not mapped: on a full disk a write raises OSError, while a
    mapped page would end the process with SIGBUS.
    """

    def __init__(self, file: BinaryIO, images: int, preprocessing: Preprocessing) -> None:
        self._file, self._preprocessing = file, preprocessing
        self._shape = (preprocessing.height, preprocessing.width, preprocessing.channels)
        self._row_bytes = int(np.prod(self._shape))
        self._lock = Lock()
        self._write_header(images)
        self._start = file.tell()

    def write(self, row: int, pixels: Decoded) -> None:
        """Resize one decoded RGB image and write it as a row."""
        fitted = self._preprocessing.fit(as_channels(pixels, self._preprocessing.channels)).tobytes()
        with self._lock:
            self._file.seek(self._start + row * self._row_bytes)
            self._file.write(fitted)

    def keep(self, rows: Sequence[int]) -> None:
        """Keep these rows alone, in this order, which is ascending; the file becomes shorter."""
        for new, old in enumerate(rows):
            if new < old:
                self._file.seek(self._start + old * self._row_bytes)
                pixels = self._file.read(self._row_bytes)
                self._file.seek(self._start + new * self._row_bytes)
                self._file.write(pixels)
        self._file.truncate(self._start + len(rows) * self._row_bytes)
        self._file.seek(0)
        self._write_header(len(rows))
        assert self._file.tell() == self._start, "numpy pads the header so that the first axis can grow"

    def _write_header(self, images: int) -> None:
        header = {"descr": "|u1", "fortran_order": False, "shape": (images, *self._shape)}
        np.lib.format.write_array_header_1_0(self._file, header)


def inspect(source: Source, config: TrainConfig, cache: Cache) -> tuple[Contents, Preprocessing, np.ndarray]:
    """Return what the files hold, how their pixels are resized, and these pixels, mapped from the cache.

    The pixels are uint8 `[images, height, width, channels]`, one row for each readable image. Without --image-size the
    side is `Contents.own_side`. Before the files are read, that of the first readable image is assumed. Where other
    images differ from it, all images are decoded a second time, at 64 px.
    """
    contents = cache.find(_CONTENTS, source.identity, TypeAdapter(Contents))
    side = config.image_size or (contents.own_side if contents else _first_side(source))
    while True:
        preprocessing = Preprocessing(
            height=side, width=side, channels=config.channels, interpolation=config.interpolation
        )
        pixels = _pixels(source, preprocessing, cache)
        contents = contents or inspect_files(source, cache)
        if config.image_size is not None or contents.own_side == side:
            return contents, preprocessing, pixels
        side = contents.own_side


def inspect_files(source: Source, cache: Cache) -> Contents:
    """Return what the files hold, from the cache or by reading all of them."""
    return cache.value(_CONTENTS, source.identity, TypeAdapter(Contents), lambda: read_all(source))


def image_set(source: Source, contents: Contents, classes: Sequence[str] | None = None) -> ImageSet:
    """Put together the labels of a source and what its files hold.

    `classes` gives the order of the classes and must hold every label; None: sorted, numbers first.
    """
    positions = contents.positions
    names = [source.labels[i] for i in positions]
    ordered = tuple(sorted(set(names), key=_natural) if classes is None else classes)
    index = {name: label for label, name in enumerate(ordered)}
    return ImageSet(
        name=source.name,
        identity=source.identity,
        keys=[source.keys[i] for i in positions],
        labels=np.array([index[name] for name in names], np.int64),
        classes=ordered,
        groups=[source.groups[i] for i in positions],
        source_splits=[source.splits[i] for i in positions],
        files=contents.files,
        duplicates=contents.duplicates,
        read=lambda i: to_rgb(source.read(positions[i])),
        unreadable=dict(sorted((source.keys[i], reason) for i, reason in contents.unreadable.items())),
        ignored=source.ignored,
    )


def read_all(source: Source, pixel_file: PixelFile | None = None) -> Contents:
    """Read every image once. The row of image i in `pixel_file`, where there is one, is its position in the source."""

    def inspect_image(position: int) -> tuple[ImageFile, np.ndarray] | str:
        try:
            file, pixels = read(source.read(position))
        except UNREADABLE as error:
            return str(error)
        if pixel_file is not None:
            pixel_file.write(position, pixels)
        return file, duplicates.fingerprint(pixels)

    files: list[ImageFile] = []
    fingerprints = np.empty(len(source.keys), FINGERPRINT)
    unreadable: dict[int, str] = {}
    for position, result in enumerate(in_threads(inspect_image, range(len(source.keys)), "read")):
        if isinstance(result, str):
            unreadable[position] = result
        else:
            file, fingerprints[len(files)] = result
            files.append(file)
    pairs = duplicates.find(fingerprints[: len(files)], [file.digest for file in files])
    return Contents(files=files, unreadable=unreadable, duplicates=pairs)


def in_threads(function: Callable[[int], T], positions: Sequence[int], description: str) -> Iterator[T]:
    """Call `function` for each position in several threads and yield the results in order, with a progress bar.

    OpenCV releases the interpreter's lock while it decodes.
    """
    parallel = joblib.Parallel(joblib.cpu_count(), prefer="threads", return_as="generator")
    results = parallel(joblib.delayed(function)(position) for position in positions)
    with tqdm(desc=description, total=len(positions), unit=" images", disable=None, leave=False) as bar:
        try:
            for result in results:
                yield result
                bar.update()
        finally:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)  # an interrupted run leaves results unused
                results.close()


def read(raw: Raw) -> tuple[ImageFile, Decoded]:
    """Return the facts about one image and its decoded RGB pixels `[height, width, 3]`. Raises ImageError."""
    if isinstance(raw, bytes):
        pixels, header = decode_with_header(raw)
    else:
        mode = "RGB" if raw.ndim == 3 and raw.shape[2] == 3 else "L"
        pixels, header = as_channels(raw, 3), Header(format=ARRAY, height=raw.shape[0], width=raw.shape[1], mode=mode)
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
    """Return the decoded RGB pixels `[height, width, 3]` of one image. Raises ImageError.

    Their luma equals what `decode` returns for one channel.
    """
    return decode_with_header(raw)[0] if isinstance(raw, bytes) else as_channels(raw, 3)


def _pixels(source: Source, preprocessing: Preprocessing, cache: Cache) -> np.ndarray:
    """The resized pixels of the readable images, mapped from the cache.

    Where the contents are not in the cache yet, one reading of the files makes both entries.
    """

    def make(folder: Path) -> None:
        with (folder / f"{_IMAGES}.npy").open("w+b") as file:
            pixel_file = PixelFile(file, len(source.keys), preprocessing)
            with cache.slot(_CONTENTS, source.identity, TypeAdapter(Contents)) as slot:
                known, contents = slot.value, slot.value or read_all(source, pixel_file)
                slot.value = contents
            if known is not None:
                _decode_all(source, contents.positions, pixel_file)
            pixel_file.keep(contents.positions)

    return cache.arrays(_IMAGES, (source.identity, preprocessing), make)[_IMAGES]


def _decode_all(source: Source, positions: Sequence[int], pixel_file: PixelFile) -> None:
    def decode_image(position: int) -> None:
        pixel_file.write(position, to_rgb(source.read(position)))

    for _ in in_threads(decode_image, positions, "decode"):
        pass


def _first_side(source: Source) -> int:
    """`Contents.own_side` by the first readable image alone."""
    for position in range(len(source.keys)):
        with suppress(*UNREADABLE):
            raw = source.read(position)
            if not isinstance(raw, bytes):
                return _own_side(raw.shape[0], raw.shape[1])
            header = read_header(raw)
            return _own_side(header.height, header.width)
    return OWN_SIDE_AT_MOST


def _own_side(height: int, width: int) -> int:
    return height if height == width and MIN_SIDE <= height <= OWN_SIDE_AT_MOST else OWN_SIDE_AT_MOST


def _natural(label: str) -> tuple[bool, int, str]:
    """Sort numbers as numbers, before words."""
    return (not label.isdecimal(), int(label) if label.isdecimal() else 0, label)
