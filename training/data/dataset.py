"""All images of a run, decoded and resized once through the contract, with labels, classes and splits."""

import hashlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import BinaryIO

import numpy as np
from jaxtyping import Int64, UInt8
from pydantic import TypeAdapter

from serving.contract.decode import Decoded, Digest, Preprocessing, as_channels
from serving.contract.image_header import MIN_SIDE, read_header
from training.config import TrainConfig
from training.data import inspection
from training.data.audit import Audit, audit, contents
from training.data.cache import Cache
from training.data.formats import Source, find
from training.data.inspection import Raw
from training.data.splits import Split
from training.errors import DataError

OWN_SIZE_AT_MOST = 64
IMAGES = "images"

_SIDE = TypeAdapter(int)


@dataclass(frozen=True, kw_only=True)
class Labelled:
    """All readable images with labels, classes and splits (arrays of indices); pixels are read when they are wanted."""

    name: str
    keys: list[str]
    labels: Int64[np.ndarray, " images"]
    classes: tuple[str, ...]
    splits: dict[Split, Int64[np.ndarray, " _"]]
    components: Int64[np.ndarray, " images"]
    """Images with one number share a group or show one picture: one draw for intervals."""
    digest: Digest
    original: Callable[[int], Decoded]
    """Image i decoded but not resized, read anew: what the parity proof and the goldens start from."""
    unreadable: dict[str, str]
    """Key of each image that was left out, and why."""


@dataclass(frozen=True, kw_only=True)
class Dataset(Labelled):
    """Labelled images with all their pixels, resized, as one uint8 array, and what the audit found in them.

    The array is mapped into memory from the cache and not to be written; take the rows that you want of it, not all.
    """

    images: UInt8[np.ndarray, "images height width channels"]
    preprocessing: Preprocessing
    audit: Audit


def load(config: TrainConfig) -> Dataset:
    """Everything a run needs to know of its data; what is in the cache is not made again. Raises DataError, OSError."""
    cache = Cache(config.cache or config.out / ".cache")
    source = find(config.data, cache)
    size = config.image_size or cache.value("side", source.identity, _SIDE, lambda: _own_size(source))
    preprocessing = Preprocessing(height=size, width=size, channels=config.channels, interpolation=config.interpolation)
    arrays = cache.arrays(
        IMAGES, (source.identity, preprocessing), lambda folder: _decode(source, cache, preprocessing, folder)
    )
    source.release()
    audited = audit(
        source,
        cache,
        leaks=config.leaks,
        val_fraction=config.val_fraction,
        test_fraction=config.test_fraction,
        seed=config.seed,
        images_per_class=config.images_per_class,
    )
    if audited.fault is not None:
        raise DataError(audited.fault)
    positions = audited.positions
    names = [source.labels[i] for i in positions]
    return Dataset(
        name=source.name,
        keys=audited.keys,
        images=arrays[IMAGES],
        labels=audited.labels,
        classes=audited.classes,
        splits=audited.division.splits,
        components=audited.division.components,
        preprocessing=preprocessing,
        digest=digest(audited.keys, names, audited.division.splits, [file.digest for file in audited.files]),
        original=lambda i: as_channels(inspection.to_rgb(source.read(positions[i])), config.channels),
        unreadable=audited.unreadable,
        audit=audited,
    )


def digest(
    keys: Sequence[str], names: Sequence[str], splits: dict[Split, np.ndarray], pictures: Sequence[Digest]
) -> Digest:
    """SHA-256 of key, label, split and pixels of every image; a model card holds that of the training data."""
    owner = np.full(len(keys), "", "U5")
    for split, indices in splits.items():
        owner[indices] = split
    rows = sorted(zip(keys, names, owner.tolist(), pictures, strict=True))
    return Digest(hashlib.sha256(repr(rows).encode()).hexdigest())


def _decode(source: Source, cache: Cache, preprocessing: Preprocessing, folder: Path) -> None:
    """Write every readable image, resized, as a row of `images.npy`; memory holds no more than the threads work on.

    By writing, not through a map: on a full disk that is an error that can be told, not a signal that kills.
    """
    shape = (preprocessing.height, preprocessing.width, preprocessing.channels)
    size = int(np.prod(shape))
    with (folder / f"{IMAGES}.npy").open("w+b") as file:
        _write_header(file, len(source.keys), shape)
        start = file.tell()
        lock = Lock()

        def keep(position: int, pixels: Decoded) -> None:
            row = preprocessing.fit(as_channels(pixels, preprocessing.channels)).tobytes()
            with lock:
                file.seek(start + position * size)
                file.write(row)

        positions = contents(source, cache, keep).positions
        if file.seek(0, os.SEEK_END) == start:  # what the files hold was known, so none was read
            for _ in inspection.in_threads(lambda i: keep(i, inspection.to_rgb(source.read(i))), positions, "decode"):
                pass
        for row, position in enumerate(positions):
            if row < position:  # close the gaps that unreadable images left
                file.seek(start + position * size)
                pixels = file.read(size)
                file.seek(start + row * size)
                file.write(pixels)
        file.truncate(start + len(positions) * size)
        file.seek(0)
        _write_header(file, len(positions), shape)
        assert file.tell() == start, "numpy leaves room for a longer first axis"


def _write_header(file: BinaryIO, count: int, shape: tuple[int, ...]) -> None:
    np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": (count, *shape)})


def _own_size(source: Source) -> int:
    """The side that all images share if it is one of at most 64 px, else 64; reads headers only."""
    sizes = set()
    for i in range(len(source.keys)):
        try:
            raw = source.read(i)
            sizes.add(_size(raw))
        except inspection.UNREADABLE:
            continue
        height, width = next(iter(sizes))
        if len(sizes) > 1 or height != width or not MIN_SIDE <= height <= OWN_SIZE_AT_MOST:
            return OWN_SIZE_AT_MOST
    return next(iter(sizes))[0] if sizes else OWN_SIZE_AT_MOST


def _size(raw: Raw) -> tuple[int, int]:
    if not isinstance(raw, bytes):
        return raw.shape[0], raw.shape[1]
    header = read_header(raw)
    return header.height, header.width
