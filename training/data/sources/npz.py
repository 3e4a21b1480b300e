"""Images in an .npz file in the MedMNIST layout: train_images and train_labels, and perhaps val_ and test_."""

import zipfile
from collections.abc import Collection
from pathlib import Path

import numpy as np

from serving.contract.listing import clean
from training.data.cache import Cache
from training.data.sources.forgotten import Forgotten
from training.data.sources.source import (
    SPLIT_NAMES,
    SPLITS,
    Source,
    Split,
    alike_but_for_case,
    identity,
    shortened,
    splits_of,
)
from training.errors import DataError
from training.storage import release

PARTS = ("images", "labels")
"""Ends of the names of a split's arrays."""
BLANK = "_blank"
"""End of the name of an array with the rows of a split that are blank."""


def npz(path: Path, cache: Cache, forgotten: Forgotten) -> Source:
    """The images of an .npz file, mapped from the cache, where those that were forgotten are blank.

    Raises DataError, OSError.
    """
    state = identity(path.parent, [path.name])
    made_by = (state, forgotten.identity) if forgotten.contents else state
    arrays = cache.arrays("npz", made_by, lambda folder: _unpack(path, folder, forgotten))
    with zipfile.ZipFile(path) as archive:
        held = _arrays(archive)
    words = _words(held)
    present = [split for split in SPLITS if split in words]
    for split in present:
        images, labels = arrays[f"{split}_images"], arrays[f"{split}_labels"]
        if images.dtype != np.uint8 or images.ndim not in (3, 4) or images.shape[3:] not in ((), (1,), (3,)):
            raise DataError(
                f"{path}: {words[split]}_images is {images.dtype} {images.shape}; "
                "expected uint8 (n, h, w) or (n, h, w, 3)"
            )
        if labels.size != len(images):
            raise DataError(f"{path}: {words[split]}_labels holds {labels.size} labels for {len(images)} images")

    def release_all() -> None:
        for array in arrays.values():
            release(array)

    order = [(split, i) for split in present for i in range(len(arrays[f"{split}_images"]))]
    blank = {split: set(arrays.get(f"{split}{BLANK}", np.empty(0, int)).tolist()) for split in present}
    names = [
        name for split in present for name in _names(path, f"{words[split]}_labels", arrays[f"{split}_labels"].ravel())
    ]
    unread = [name for name in held if name not in {f"{word}_{what}" for word in words.values() for what in PARTS}]
    note = f"arrays that are not read, for they are no images and labels of a split: {shortened(unread)}."
    return Source(
        name=str(path),
        identity=state,
        keys=[f"{path.name}#{split}/{i}" for split, i in order],
        labels=names,
        groups=[""] * len(order),
        splits=[split for split, _ in order],
        read=lambda i: arrays[f"{order[i][0]}_images"][order[i][1]],
        size=lambda i: 0,
        forgotten=frozenset(place for place, (split, i) in enumerate(order) if i in blank[split]),
        notes=[*([note] if unread else []), *alike_but_for_case("class names", names)],
        release=release_all,
    )


def _names(path: Path, array: str, labels: np.ndarray) -> list[str]:
    """Labels as names of classes: 1.0 is `1`, bytes are UTF-8. Raises DataError for a label that names no class."""
    kind = labels.dtype.kind
    if kind not in "biufUS":
        raise DataError(f"{path}: {array} is {labels.dtype}; expected integers or text")
    if kind == "f":
        broken = np.flatnonzero(~np.isfinite(labels) | (labels != np.round(labels)))
        names = [] if len(broken) else [str(int(label)) for label in labels]
    else:
        try:
            names = [clean(label.decode() if kind == "S" else str(label)) for label in labels.tolist()]
        except UnicodeDecodeError as error:
            raise DataError(f"{path}: {array} holds bytes that are not UTF-8 ({error})") from error
        broken = np.flatnonzero([not name for name in names])
    if len(broken):
        first = broken[0]
        raise DataError(
            f"{path}: {array}: {len(broken):,} labels name no class; the first is {labels[first].item()!r}, "
            f"of image {first}"
        )
    return names


def _arrays(archive: zipfile.ZipFile) -> list[str]:
    return [name.removesuffix(".npy") for name in archive.namelist()]


def _words(arrays: Collection[str]) -> dict[Split, str]:
    """What each split with images and labels is called; of two names for one split, the first of SPLIT_NAMES."""
    complete = [word for word in SPLIT_NAMES if all(f"{word}_{what}" in arrays for what in PARTS)]
    words: dict[Split, str] = {}
    for word, split in splits_of(complete).items():
        words.setdefault(split, word)
    return words


def _unpack(path: Path, folder: Path, forgotten: Forgotten) -> None:
    """Extract images and labels as .npy files, which can be mapped: they need not fit into memory."""
    try:
        with zipfile.ZipFile(path) as archive:
            held = _arrays(archive)
            words = _words(held)
            if "train" not in words:
                raise DataError(
                    f"{path}: no arrays train_images and train_labels; there are {', '.join(held) or 'none'}"
                )
            for split, word in words.items():
                for what in PARTS:
                    place = folder / f"{split}_{what}.npy"
                    Path(archive.extract(f"{word}_{what}.npy", folder)).rename(place)
                    np.load(place, mmap_mode="r", allow_pickle=False)
                if forgotten.contents:
                    _blank(folder, split, forgotten)
    except (DataError, OSError):
        raise
    except Exception as error:  # zipfile, zlib and numpy raise their own classes for damage
        raise DataError(f"{path}: not an .npz file that numpy can read ({error})") from error


def _blank(folder: Path, split: Split, forgotten: Forgotten) -> None:
    """Overwrite the images that were forgotten: to take out their rows would give the others new names."""
    images = np.load(folder / f"{split}_images.npy", mmap_mode="r+", allow_pickle=False)
    rows = [row for row, image in enumerate(images) if forgotten.holds(image)]
    images[rows] = 0
    images.flush()
    np.save(folder / f"{split}{BLANK}.npy", np.array(rows, int))
