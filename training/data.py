"""All images of a run, decoded and resized once through the contract, with labels, classes and splits."""

import hashlib
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Int64, UInt8
from tqdm import tqdm

from serving import contract
from serving.contract import Channels, Decoded, Digest, ImageError, Preprocessing
from training import splits
from training.config import TrainConfig
from training.sources import NAMES_SHOWN, Source, find
from training.splits import DataError, Split

OWN_SIZE_AT_MOST = 64
UNREADABLE_SHARE_AT_MOST = 0.01


@dataclass(frozen=True, kw_only=True)
class Labelled:
    """All readable images with labels, classes and splits (arrays of indices); pixels are read when they are wanted."""

    name: str
    keys: list[str]
    labels: Int64[np.ndarray, " images"]
    classes: tuple[str, ...]
    splits: dict[Split, Int64[np.ndarray, " _"]]
    components: Int64[np.ndarray, " images"]
    """Images with one number share a group or their content: they are in one split, and are one draw for intervals."""
    digest: Digest
    original: Callable[[int], Decoded]
    """Image i decoded but not resized, read anew: what the parity proof and the goldens start from."""
    unreadable: dict[str, str] = field(default_factory=dict)
    """Key of each image that was skipped, and why."""


@dataclass(frozen=True, kw_only=True)
class Dataset(Labelled):
    """Labelled images with all their pixels, resized, as one uint8 array."""

    images: UInt8[np.ndarray, "images height width channels"]
    preprocessing: Preprocessing


def load(config: TrainConfig) -> Dataset:
    """Everything a run needs to know of its data. Raises DataError."""
    source = find(config.data)
    size = config.image_size or _own_size(source)
    preprocessing = Preprocessing(height=size, width=size, channels=config.channels, interpolation=config.interpolation)
    images = np.zeros((len(source.keys), size, size, config.channels), np.uint8)

    def keep(i: int, pixels: Decoded) -> None:
        images[i] = preprocessing.fit(pixels)

    contents, unreadable = decode_all(source, config.channels, keep)
    kept = np.flatnonzero([key not in unreadable for key in source.keys])
    if len(kept) < len(images):
        images = images[kept]
    names = [source.labels[i] for i in kept]
    classes = tuple(sorted(set(names), key=_natural))
    labels = np.array([classes.index(name) for name in names], dtype=np.int64)
    _check_classes(classes, labels)
    contents = [contents[i] for i in kept]
    components = splits.components([source.groups[i] for i in kept], contents)
    made = splits.complete(
        [source.splits[i] for i in kept],
        labels,
        components,
        classes,
        val_fraction=config.val_fraction,
        test_fraction=config.test_fraction,
        seed=config.seed,
    )
    keys = [source.keys[i] for i in kept]
    return Dataset(
        name=source.name,
        keys=keys,
        images=images,
        labels=labels,
        classes=classes,
        splits=made,
        components=components,
        preprocessing=preprocessing,
        digest=digest(keys, names, made, contents),
        original=lambda i: pixels(source.read(int(kept[i])), config.channels),
        unreadable=unreadable,
    )


def _own_size(source: Source) -> int:
    """The side that all images share if it is one of at most 64 px, else 64; reads headers only."""
    sizes = set()
    for i in range(len(source.keys)):
        try:
            raw = source.read(i)
            sizes.add(contract.image_size(raw) if isinstance(raw, bytes) else raw.shape[:2])
        except (ImageError, OSError):
            continue
        height, width = next(iter(sizes))
        if len(sizes) > 1 or height != width or not contract.MIN_SIDE <= height <= OWN_SIZE_AT_MOST:
            return OWN_SIZE_AT_MOST
    return next(iter(sizes))[0] if sizes else OWN_SIZE_AT_MOST


def pixels(raw: bytes | np.ndarray, channels: Channels) -> Decoded:
    """What a source reads, as upright uint8 pixels of its own size. Raises ImageError."""
    return contract.decode(raw, channels) if isinstance(raw, bytes) else contract.as_channels(raw, channels)


def decode_all(
    source: Source, channels: Channels, use: Callable[[int, Decoded], object]
) -> tuple[list[Digest], dict[str, str]]:
    """Decode every image in threads (OpenCV releases the lock) and hand it to `use` with its number.

    Gives a digest of each image's content, and key and reason of each that cannot be read. Raises DataError when
    those are more than 1 %.
    """
    count = len(source.keys)
    contents = [Digest("")] * count
    unreadable: dict[str, str] = {}

    def decode(i: int) -> None:
        try:
            raw = source.read(i)
            use(i, pixels(raw, channels))
            contents[i] = Digest(hashlib.sha256(raw if isinstance(raw, bytes) else raw.tobytes()).hexdigest())
        except (ImageError, OSError) as error:
            unreadable[source.keys[i]] = str(error)

    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        for _ in tqdm(pool.map(decode, range(count)), "decode", count, unit=" images", disable=None, leave=False):
            pass
    for key, reason in sorted(unreadable.items())[:NAMES_SHOWN]:
        print(f"skipped {key}: {reason}")
    if len(unreadable) > UNREADABLE_SHARE_AT_MOST * count:
        raise DataError(f"{source.name}: {len(unreadable):,} of {count:,} images cannot be read, more than 1 %")
    return contents, unreadable


def digest(
    keys: Sequence[str], names: Sequence[str], splits: dict[Split, np.ndarray], contents: Sequence[Digest]
) -> Digest:
    """SHA-256 of key, label, split and content of every image; a model card holds that of the training data."""
    owner = np.full(len(keys), "", "U5")
    for split, indices in splits.items():
        owner[indices] = split
    rows = sorted(zip(keys, names, owner.tolist(), contents, strict=True))
    return Digest(hashlib.sha256(repr(rows).encode()).hexdigest())


def _natural(label: str) -> tuple[bool, int, str]:
    """Sort numbers as numbers, before words."""
    return (not label.isdecimal(), int(label) if label.isdecimal() else 0, label)


def _check_classes(classes: Sequence[str], labels: np.ndarray) -> None:
    if len(classes) < 2:
        raise DataError(f"only one class ({classes[0] if classes else 'none'}); a classifier needs at least two")
    counts = np.bincount(labels, minlength=len(classes))
    single = [name for name, count in zip(classes, counts, strict=True) if count < 2]
    if single:
        raise DataError(f"classes with one image only, which cannot be both learned and tested: {', '.join(single)}")
