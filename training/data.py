"""All images of a run, decoded and resized once through the contract, with labels, classes and splits."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int64, UInt8

from serving import contract
from serving.contract import Decoded, Digest, ImageError, Preprocessing
from training import files
from training.audit import Audit, audit
from training.config import TrainConfig
from training.files import Raw
from training.sources import Source, find
from training.splits import DataError, Split

OWN_SIZE_AT_MOST = 64


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
    """Labelled images with all their pixels, resized, as one uint8 array, and what the audit found in them."""

    images: UInt8[np.ndarray, "images height width channels"]
    preprocessing: Preprocessing
    audit: Audit


def load(config: TrainConfig) -> Dataset:
    """Everything a run needs to know of its data. Raises DataError."""
    source = find(config.data)
    size = config.image_size or _own_size(source)
    preprocessing = Preprocessing(height=size, width=size, channels=config.channels, interpolation=config.interpolation)
    images = np.zeros((len(source.keys), size, size, config.channels), np.uint8)

    def keep(position: int, pixels: Decoded) -> None:
        images[position] = preprocessing.fit(contract.as_channels(pixels, config.channels))

    audited = audit(
        source,
        leaks=config.leaks,
        val_fraction=config.val_fraction,
        test_fraction=config.test_fraction,
        seed=config.seed,
        keep=keep,
    )
    if audited.fault is not None:
        raise DataError(audited.fault)
    positions = audited.positions
    names = [source.labels[i] for i in positions]
    return Dataset(
        name=source.name,
        keys=audited.keys,
        images=images if len(positions) == len(images) else images[positions],
        labels=audited.labels,
        classes=audited.classes,
        splits=audited.division.splits,
        components=audited.division.components,
        preprocessing=preprocessing,
        digest=digest(audited.keys, names, audited.division.splits, [file.digest for file in audited.files]),
        original=lambda i: contract.as_channels(files.decode(source.read(positions[i])), config.channels),
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


def _own_size(source: Source) -> int:
    """The side that all images share if it is one of at most 64 px, else 64; reads headers only."""
    sizes = set()
    for i in range(len(source.keys)):
        try:
            raw = source.read(i)
            sizes.add(_size(raw))
        except (ImageError, OSError):
            continue
        height, width = next(iter(sizes))
        if len(sizes) > 1 or height != width or not contract.MIN_SIDE <= height <= OWN_SIZE_AT_MOST:
            return OWN_SIZE_AT_MOST
    return next(iter(sizes))[0] if sizes else OWN_SIZE_AT_MOST


def _size(raw: Raw) -> tuple[int, int]:
    if not isinstance(raw, bytes):
        return raw.shape[0], raw.shape[1]
    header = contract.read_header(raw)
    return header.height, header.width
