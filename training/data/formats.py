"""List images and their labels. The path of --data decides which of five formats is read.

Without a path, the handwritten digits inside scikit-learn; a folder of class folders; a folder with train/ val/ [test/]
of class folders; a CSV manifest; an .npz file in the MedMNIST layout. No image is decoded here.
"""

import csv
import hashlib
import os
import zipfile
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

import cv2
import numpy as np
from sklearn.datasets import load_digits

from serving.contract.image_header import IMAGE_EXTENSIONS
from training.data.cache import Cache
from training.errors import DataError
from training.storage import release

Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)
SPLIT_NAMES: dict[str, Split] = {
    "train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "test": "test",
}  # fmt: skip
NAMES_SHOWN = 20
DIGITS_SCALE = 2


@dataclass(frozen=True, kw_only=True)
class Source:
    """Labelled images before any is read. All lists have one entry for each image."""

    name: str
    identity: str
    """Digest of the images' state. It changes when an image is written, replaced, added or removed, not with labels
    and splits."""
    keys: list[str]
    """Name of each image, for people."""
    labels: list[str]
    groups: list[str]
    """Images of one group must not be in two splits. An empty string is no group."""
    splits: list[Split | None]
    """None: the source assigns no split."""
    read: Callable[[int], bytes | np.ndarray]
    """Read image i: encoded bytes, or uint8 pixels."""
    ignored: list[str] = field(default_factory=list)
    """Files in class folders whose names have no ending of an accepted format."""
    release: Callable[[], None] = lambda: None
    """Release the memory of mapped images that were read."""


def find(data: Path | None, cache: Cache) -> Source:
    """Determine the format of the data and list its images. Raises DataError, OSError."""
    if data is None:
        return _digits()
    if not data.exists():
        raise DataError(f"{data}: there is no such file or folder")
    if data.is_dir():
        return _folders(data)
    if data.suffix.lower() == ".csv":
        return _manifest(data)
    if data.suffix.lower() == ".npz":
        return _npz(data, cache)
    raise DataError(f"{data}: expected a folder, a .csv manifest or an .npz file")


def _digits() -> Source:
    digits = load_digits()
    pixels = np.round(digits.images * (255 / 16)).astype(np.uint8)
    side = pixels.shape[1] * DIGITS_SCALE
    pixels = np.stack([cv2.resize(image, (side, side), interpolation=cv2.INTER_CUBIC) for image in pixels])
    return Source(
        name="handwritten digits (scikit-learn)",
        identity="digits",
        keys=[f"digits#{i}" for i in range(len(pixels))],
        labels=[str(label) for label in digits.target],
        groups=[""] * len(pixels),
        splits=[None] * len(pixels),
        read=lambda i: pixels[i],
    )


def _folders(root: Path) -> Source:
    splits = {folder: SPLIT_NAMES.get(folder.name.lower()) for folder in _subfolders(root)}
    if not {"train", "val"} <= set(splits.values()):
        splits = {root: None}
    files = [
        (path, label, split)
        for folder, split in splits.items()
        if split or folder == root
        for path, label in _labelled(folder)
    ]
    images = [
        (str(path.relative_to(root)), label, "", split)
        for path, label, split in files
        if path.suffix.lower() in IMAGE_EXTENSIONS
    ]
    if not images:
        raise DataError(
            f"{root}: no images ({' '.join(sorted(IMAGE_EXTENSIONS))}) in class folders; "
            f"expected {root.name}/<class>/<image>, {root.name}/train/<class>/<image> "
            "with val/ beside it, or a CSV manifest"
        )
    ignored = [str(path.relative_to(root)) for path, _, _ in files if path.suffix.lower() not in IMAGE_EXTENSIONS]
    return _files(str(root), root, images, ignored)


def _manifest(path: Path) -> Source:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = list(csv.DictReader(file))
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: not a CSV file in UTF-8 ({error})") from error
    if not rows:
        raise DataError(f"{path}: the manifest has no rows")
    missing = [column for column in ("path", "label") if column not in rows[0]]
    if missing:
        raise DataError(f"{path}: no column {' and '.join(missing)}; there are {', '.join(map(str, rows[0]))}")
    _refuse(path, "rows without a label", (row["path"] for row in rows if not row["label"]))
    _refuse(
        path, "images that do not exist", (row["path"] for row in rows if not (path.parent / row["path"]).is_file())
    )
    _refuse(
        path, "paths that appear more than once", (p for p, n in Counter(row["path"] for row in rows).items() if n > 1)
    )
    splits = [(row.get("split") or "").strip().lower() for row in rows]
    _refuse(
        path,
        f"splits other than {', '.join(SPLITS)}",
        sorted({name for name in splits if name not in SPLIT_NAMES} - {""}),
    )
    return _files(
        str(path),
        path.parent,
        [
            (row["path"], row["label"], row.get("group") or "", SPLIT_NAMES.get(split))
            for row, split in zip(rows, splits, strict=True)
        ],
    )


def _npz(path: Path, cache: Cache) -> Source:
    identity = _identity(path.parent, [path.name])
    arrays = cache.arrays("npz", identity, lambda folder: _unpack(path, folder))
    present = [split for split in SPLITS if f"{split}_images" in arrays]
    for split in present:
        images, labels = arrays[f"{split}_images"], arrays[f"{split}_labels"]
        if images.dtype != np.uint8 or images.ndim not in (3, 4) or images.shape[3:] not in ((), (1,), (3,)):
            raise DataError(
                f"{path}: {split}_images is {images.dtype} {images.shape}; expected uint8 (n, h, w) or (n, h, w, 3)"
            )
        if labels.size != len(images):
            raise DataError(f"{path}: {split}_labels holds {labels.size} labels for {len(images)} images")

    def release_all() -> None:
        for array in arrays.values():
            release(array)

    order = [(split, i) for split in present for i in range(len(arrays[f"{split}_images"]))]
    return Source(
        name=str(path),
        identity=identity,
        keys=[f"{path.name}#{split}/{i}" for split, i in order],
        labels=[str(label) for split in present for label in arrays[f"{split}_labels"].ravel()],
        groups=[""] * len(order),
        splits=[split for split, _ in order],
        read=lambda i: arrays[f"{order[i][0]}_images"][order[i][1]],
        release=release_all,
    )


def _unpack(path: Path, folder: Path) -> None:
    """Extract images and labels as .npy files, which can be mapped: they need not fit into memory."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = [name.removesuffix(".npy") for name in archive.namelist()]
            if not {"train_images", "train_labels"} <= set(names):
                raise DataError(
                    f"{path}: no arrays train_images and train_labels; there are {', '.join(names) or 'none'}"
                )
            for split in SPLITS:
                wanted = {f"{split}_images", f"{split}_labels"}
                for name in wanted if wanted <= set(names) else ():
                    np.load(archive.extract(f"{name}.npy", folder), mmap_mode="r", allow_pickle=False)
    except (DataError, OSError):
        raise
    except Exception as error:  # zipfile, zlib and numpy raise their own classes for damage
        raise DataError(f"{path}: not an .npz file that numpy can read ({error})") from error


def _files(
    name: str, root: Path, rows: list[tuple[str, str, str, Split | None]], ignored: Sequence[str] = ()
) -> Source:
    keys = [key for key, _, _, _ in rows]
    _refuse(Path(name), "file names that are not UTF-8", (ascii(key) for key in keys if not _is_utf8(key)))
    return Source(
        name=name,
        identity=_identity(root, keys),
        keys=keys,
        labels=[label for _, label, _, _ in rows],
        groups=[group for _, _, group, _ in rows],
        splits=[split for _, _, _, split in rows],
        read=lambda i: (root / keys[i]).read_bytes(),
        ignored=list(ignored),
    )


def _is_utf8(name: str) -> bool:
    """Python keeps other bytes of a file name as surrogates, which cannot be written into a report."""
    return not any("\ud800" <= character <= "\udfff" for character in name)


def _identity(root: Path, keys: Sequence[str]) -> str:
    """A digest of the paths, the sizes, the times of the last change and whether the files may be read."""
    states = [(key, _state(root / key)) for key in keys]
    return hashlib.sha256(repr((root.resolve(), states)).encode()).hexdigest()


def _state(path: Path) -> tuple[int, int, int] | None:
    if not os.access(path, os.R_OK):
        return None
    status = path.stat()
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns


def _subfolders(root: Path) -> list[Path]:
    return sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith((".", "__")))


def _labelled(root: Path) -> list[tuple[Path, str]]:
    """Every file below the class folders of `root`, at any depth and in a fixed order, without hidden files."""
    return [
        (Path(folder) / name, class_folder.name)
        for class_folder in _subfolders(root)
        for folder, folders, names in os.walk(class_folder, followlinks=True)
        if folders.sort() is None
        for name in sorted(names)
        if not name.startswith(".")
    ]


def _refuse(path: Path, what: str, offenders: Iterable[str]) -> None:
    names = list(offenders)
    if names:
        shown = "".join(f"\n  {name}" for name in names[:NAMES_SHOWN])
        more = f"\n  and {len(names) - NAMES_SHOWN:,} more" if len(names) > NAMES_SHOWN else ""
        raise DataError(f"{path}: {what}: {len(names):,}{shown}{more}")
