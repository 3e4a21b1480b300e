"""The pixels of all images, resized for training, and the size that is chosen for them."""

import errno
import shutil
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pydantic import TypeAdapter

from serving.contract.decode import Preprocessing
from serving.contract.formats.image_header import read_header
from training.data.cache import Cache
from training.data.input.sizing import Size, Sizing, choose_sizing
from training.data.inspection.contents import CONTENTS, Contents, inspect_files, read_all
from training.data.inspection.image_file import UNREADABLE, to_rgb
from training.data.inspection.pixel_file import PixelFile
from training.data.inspection.threads import in_threads
from training.data.sources.source import Source
from training.options.config import TrainConfig

_IMAGES = "images"


@dataclass(frozen=True, kw_only=True)
class Inspection:
    """What the files hold, the model and size that were chosen by it, and the pixels of that size.

    `pixels` are uint8 `[images, height, width, channels]`, mapped from the cache, one row for each readable image.
    """

    contents: Contents
    sizing: Sizing
    preprocessing: Preprocessing
    pixels: np.ndarray


def inspect_pixels(source: Source, config: TrainConfig, cache: Cache) -> Inspection:
    """Read every image once, where the cache does not hold its content yet.

    Before the files are read, all images are assumed to be as large as the first readable one. Where another size is
    then chosen, all images are decoded a second time.
    """
    contents = cache.find(CONTENTS, source.identity, TypeAdapter(Contents))
    sizing = choose_sizing(config, contents.sizes if contents else _first_size(source))
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
        assumed, sizing = sizing, choose_sizing(config, contents.sizes)
        if sizing.side == assumed.side:
            return Inspection(contents=contents, sizing=sizing, preprocessing=preprocessing, pixels=pixels)


def resized_pixels(source: Source, preprocessing: Preprocessing, cache: Cache) -> np.ndarray:
    """The resized pixels of the readable images, mapped from the cache.

    Where the contents are not in the cache yet, one reading of the files makes both entries. Raises OSError before it
    where the disk has no room for the pixels.
    """

    def make(folder: Path) -> None:
        _check_room(folder, len(source.keys), preprocessing)
        with (folder / f"{_IMAGES}.npy").open("w+b") as file:
            pixel_file = PixelFile(file, source.keys, preprocessing)
            with cache.slot(CONTENTS, source.identity, TypeAdapter(Contents)) as slot:
                known, contents = slot.value, slot.value or read_all(source, pixel_file, folder)
                slot.value = contents
            if known is not None:
                _decode_all(source, contents.positions, pixel_file)
            pixel_file.keep(contents.positions)

    return cache.arrays(_IMAGES, (source.identity, preprocessing), make)[_IMAGES]


def _check_room(folder: Path, images: int, preprocessing: Preprocessing) -> None:
    """Raise OSError where the disk is too small for the rows, which would fill it only after hours of reading."""
    height, width, channels = preprocessing.height, preprocessing.width, preprocessing.channels
    needed, disk = images * height * width * channels, shutil.disk_usage(folder)
    if disk.total and needed > disk.free:  # of some network file systems all sizes are 0
        size = f"{images:,} images of {height} x {width} x {channels} need {needed / 1e6:,.0f} MB"
        raise OSError(errno.ENOSPC, f"{size}, of which {disk.free / 1e6:,.0f} MB are free")


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
