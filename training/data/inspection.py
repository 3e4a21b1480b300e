"""Read every image file once: its header, its digest, its fingerprint, and its pixels, resized for training."""

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import cv2
import joblib
import numpy as np
from jaxtyping import Int64, UInt8
from pydantic import TypeAdapter
from tqdm import tqdm

from serving.contract.decode import (
    Decoded,
    Digest,
    Preprocessing,
    as_channels,
    checked_header,
    decode,
    decode_checked,
    pixel_digest,
    stored_values,
)
from serving.contract.formats.depth import SHIFTED, Depth
from serving.contract.image_header import Header, ImageError, read_header
from training.config import TrainConfig
from training.data import duplicates
from training.data.cache import Cache
from training.data.duplicates import FINGERPRINT, Duplicates
from training.data.input import depth as depths
from training.data.input.sizing import Size, Sizing, choose
from training.data.pixel_file import PixelFile
from training.data.sources.source import Source, Split, shortened

T = TypeVar("T")

Raw = bytes | UInt8[np.ndarray, "..."]
"""An image as `Source.read` returns it: encoded, or pixels `[height, width]` or `[height, width, channels]`."""
ARRAY = "array"
"""Format of an image that came as pixels, not as a file."""
UNREADABLE = (ImageError, FileNotFoundError, PermissionError)
"""Errors that exclude one image. Any other OSError is a fault of the storage and ends the run."""

_CONTENTS = "contents"
_IMAGES = "images"


@dataclass(frozen=True, kw_only=True)
class ImageFile:
    """One readable image: its header and mean colour (red, green, blue; 0 to 255).

    `bytes` is the size of the file, 0 where there is none. `digest` is that of the decoded pixels: a PNG file with the
    pixels of a JPEG file has the same digest. Of an image of more than 8 bits, digest and colour are those of its
    stored values.
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
    """Of a value: 16, or 8 for any smaller number, too."""


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
    def sizes(self) -> list[Size]:
        """Height and width of each readable image."""
        return [(file.height, file.width) for file in self.files]


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
    raw: Callable[[int], Raw]
    """Read image i again, as it is stored."""
    depth: Depth = SHIFTED
    """How `read` shows values of more than 8 bits."""
    columns: dict[str, list[str]] = field(default_factory=dict)
    """`Source.columns`."""
    unreadable: dict[str, str] = field(default_factory=dict)
    """Key of each image that cannot be read, and the reason."""
    ignored: list[str] = field(default_factory=list)
    """`Source.ignored`."""
    notes: list[str] = field(default_factory=list)
    """`Source.notes`, and classes of which no image can be read."""

    def read(self, index: int) -> Decoded:
        """Read an image again, decoded to RGB and not resized. Raises ImageError, OSError."""
        return to_rgb(self.raw(index), self.depth)

    @property
    def formats(self) -> tuple[str, ...]:
        """The formats of the readable files, sorted; empty where the images are no files."""
        return tuple(sorted({file.format for file in self.files} - {ARRAY}))

    @property
    def deep(self) -> Int64[np.ndarray, " _"]:
        """Indices of the images of more than 8 bits."""
        return np.flatnonzero([file.bits > 8 for file in self.files])


@dataclass(frozen=True, kw_only=True)
class Inspection:
    """What the files hold, the model and size that were chosen by it, and the pixels of that size.

    `pixels` are uint8 `[images, height, width, channels]`, mapped from the cache, one row for each readable image.
    """

    contents: Contents
    sizing: Sizing
    preprocessing: Preprocessing
    pixels: np.ndarray


def inspect(source: Source, config: TrainConfig, cache: Cache) -> Inspection:
    """Read every image once, where the cache does not hold its content yet.

    Before the files are read, all images are assumed to be as large as the first readable one. Where another size is
    then chosen, all images are decoded a second time.
    """
    contents = cache.find(_CONTENTS, source.identity, TypeAdapter(Contents))
    sizing = choose(config, contents.sizes if contents else _first_size(source))
    while True:
        preprocessing = Preprocessing(
            height=sizing.side,
            width=sizing.side,
            channels=config.channels,
            interpolation=config.interpolation,
            fit=config.fit,
            fill=config.fill,
        )
        pixels = resized_pixels(source, preprocessing, cache)
        contents = contents or inspect_files(source, cache)
        assumed, sizing = sizing, choose(config, contents.sizes)
        if sizing.side == assumed.side:
            return Inspection(contents=contents, sizing=sizing, preprocessing=preprocessing, pixels=pixels)


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
        raw=lambda i: source.read(positions[i]),
        columns={name: [values[i] for i in positions] for name, values in source.columns.items()},
        unreadable=dict(sorted((source.keys[i], reason) for i, reason in contents.unreadable.items())),
        ignored=source.ignored,
        notes=[*source.notes, *_lost_classes(source, names)],
    )


def _lost_classes(source: Source, remaining: Sequence[str]) -> list[str]:
    lost = sorted(set(source.labels) - set(remaining), key=_natural)
    return [f"classes of which no image can be read are left out: {shortened(lost)}."] if lost else []


def read_all(source: Source, pixel_file: PixelFile | None = None) -> Contents:
    """Read every image once. The row of image i in `pixel_file`, where there is one, is its position in the source."""

    def inspect_image(position: int) -> tuple[ImageFile, np.ndarray] | str:
        try:
            raw = source.read(position)
            file, pixels = read(raw, pixel_file.depth if pixel_file else SHIFTED)
        except UNREADABLE as error:
            return str(error)
        if pixel_file is not None:
            pixel_file.write(position, pixels)
        if isinstance(raw, bytes) and file.bits > 8:  # copies are found whatever depth is chosen later
            pixels = decode(raw, depth=depths.spread(depths.counts(raw)))
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


def read(raw: Raw, depth: Depth = SHIFTED) -> tuple[ImageFile, Decoded]:
    """Return the facts about one image and its decoded RGB pixels `[height, width, 3]`. Raises ImageError."""
    values: np.ndarray | None = None
    if isinstance(raw, bytes):
        header = checked_header(raw)
        pixels = decode_checked(raw, header, depth=depth)
        values = stored_values(raw, header) if header.bits > 8 else None
    else:
        mode = "RGB" if raw.ndim == 3 and raw.shape[2] == 3 else "L"
        pixels, header = as_channels(raw, 3), Header(format=ARRAY, height=raw.shape[0], width=raw.shape[1], mode=mode)
    red, green, blue = _mean_colour(pixels if values is None else values)
    return ImageFile(
        format=header.format,
        height=header.height,
        width=header.width,
        mode=header.mode,
        orientation=header.orientation,
        bytes=len(raw) if isinstance(raw, bytes) else 0,
        colour=(red, green, blue),
        digest=pixel_digest(pixels if values is None else np.ascontiguousarray(values).view(np.uint8)),
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


def resized_pixels(source: Source, preprocessing: Preprocessing, cache: Cache) -> np.ndarray:
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
        pixel_file.write(position, to_rgb(source.read(position), pixel_file.depth))

    for _ in in_threads(decode_image, positions, "decode"):
        pass


def _first_size(source: Source) -> list[Size]:
    """The size of the first readable image; empty where there is none."""
    for position in range(len(source.keys)):
        with suppress(*UNREADABLE):
            raw = source.read(position)
            if not isinstance(raw, bytes):
                return [(raw.shape[0], raw.shape[1])]
            header = read_header(raw)
            return [(header.height, header.width)]
    return []


def _natural(label: str) -> tuple[bool, int, str]:
    """Sort numbers as numbers, before words."""
    return (not label.isdecimal(), int(label) if label.isdecimal() else 0, label)
