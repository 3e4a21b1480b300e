"""Find images and labels, split them, decode and resize them once.

Five kinds of data, told apart by what --data points to: nothing (the handwritten digits inside scikit-learn), a folder
of class folders, a folder with train/ val/ [test/] of class folders, a CSV manifest, an .npz in the MedMNIST layout.
"""

import csv
import hashlib
import os
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

import cv2
import numpy as np
from jaxtyping import Int64, UInt8
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from sklearn.datasets import load_digits
from tqdm import tqdm

from serving import contract
from serving.contract import Channels, Decoded, Digest, ImageError, Preprocessing
from training.config import TrainConfig

Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)
SPLIT_NAMES: dict[str, Split] = {
    "train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "test": "test",
}  # fmt: skip

ENDINGS = {".jpg", ".jpeg", ".png", ".webp", ".bmp"}
OWN_SIZE_AT_MOST = 64
UNREADABLE_SHARE_AT_MOST = 0.01
NAMES_SHOWN = 20
DIGITS_SCALE = 2


class DataError(ValueError):
    """Data that no model can be trained on; the message says what was found and what is expected."""


@dataclass(frozen=True, kw_only=True)
class Source:
    """Labelled images as they were found: nothing decoded, splits perhaps missing.

    `read(i)` gives image i as encoded bytes or as uint8 pixels; `keys` name the images for people.
    """

    name: str
    keys: list[str]
    labels: list[str]
    groups: list[str]
    splits: list[Split | None]
    read: Callable[[int], bytes | np.ndarray]


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """All readable images as one uint8 array, with labels, classes and splits (arrays of indices)."""

    name: str
    keys: list[str]
    images: UInt8[np.ndarray, "images height width channels"]
    labels: Int64[np.ndarray, " images"]
    classes: tuple[str, ...]
    splits: dict[Split, Int64[np.ndarray, " _"]]
    preprocessing: Preprocessing
    digest: Digest
    original: Callable[[int], Decoded]
    """Image i decoded but not resized, read anew: what the parity proof and the goldens start from."""
    unreadable: dict[str, str] = field(default_factory=dict)
    """Key of each image that was skipped, and why."""


def load(config: TrainConfig) -> Dataset:
    """Everything a run needs to know of its data. Raises DataError."""
    source = find(config.data)
    size = config.image_size or _own_size(source)
    preprocessing = Preprocessing(height=size, width=size, channels=config.channels, interpolation=config.interpolation)
    images, digests, unreadable = _decode_all(source, preprocessing)
    kept = np.flatnonzero([key not in unreadable for key in source.keys])
    if len(kept) < len(images):
        images = images[kept]
    names = [source.labels[i] for i in kept]
    classes = tuple(sorted(set(names), key=_natural))
    labels = np.array([classes.index(name) for name in names], dtype=np.int64)
    components = _together([source.groups[i] for i in kept], [digests[i] for i in kept])
    _check_classes(classes, labels)
    splits = _complete_splits(classes, labels, components, [source.splits[i] for i in kept], config)
    _check_splits(classes, labels, splits)
    keys = [source.keys[i] for i in kept]
    owner = [split for _, split in sorted((i, split) for split in SPLITS for i in splits[split])]
    rows = sorted(zip(keys, names, owner, [digests[i] for i in kept], strict=True))
    return Dataset(
        name=source.name,
        keys=keys,
        images=images,
        labels=labels,
        classes=classes,
        splits=splits,
        preprocessing=preprocessing,
        digest=Digest(hashlib.sha256(repr(rows).encode()).hexdigest()),
        original=lambda i: _pixels(source.read(int(kept[i])), config.channels),
        unreadable=unreadable,
    )


def find(data: Path | None) -> Source:
    """Tell the five kinds of data apart and list what is there. Raises DataError."""
    if data is None:
        return _digits()
    if not data.exists():
        raise DataError(f"{data}: there is no such file or folder")
    if data.is_dir():
        return _folders(data)
    if data.suffix.lower() == ".csv":
        return _manifest(data)
    if data.suffix.lower() == ".npz":
        return _npz(data)
    raise DataError(f"{data}: expected a folder, a .csv manifest or an .npz file")


def _digits() -> Source:
    digits = load_digits()
    pixels = np.round(digits.images * (255 / 16)).astype(np.uint8)
    side = pixels.shape[1] * DIGITS_SCALE
    pixels = np.stack([cv2.resize(image, (side, side), interpolation=cv2.INTER_CUBIC) for image in pixels])
    return Source(
        name="handwritten digits (scikit-learn)",
        keys=[f"digits#{i}" for i in range(len(pixels))],
        labels=[str(label) for label in digits.target],
        groups=[""] * len(pixels),
        splits=[None] * len(pixels),
        read=lambda i: pixels[i],
    )


def _folders(root: Path) -> Source:
    splits = {folder: SPLIT_NAMES.get(folder.name.lower()) for folder in _subfolders(root)}
    if {"train", "val"} <= set(splits.values()):
        found: list[tuple[Path, str, Split | None]] = [
            (path, label, split) for folder, split in splits.items() if split for path, label in _labelled(folder)
        ]
    else:
        found = [(path, label, None) for path, label in _labelled(root)]
    if not found:
        raise DataError(
            f"{root}: no images ({' '.join(sorted(ENDINGS))}) in class folders; expected {root.name}/<class>/<image>, "
            f"{root.name}/train/<class>/<image> with val/ beside it, or a CSV manifest"
        )
    return _files(str(root), root, [(str(path.relative_to(root)), label, "", split) for path, label, split in found])


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
    given = [(row.get("split") or "").strip().lower() for row in rows]
    _refuse(
        path,
        f"splits other than {', '.join(SPLITS)}",
        sorted({name for name in given if name not in SPLIT_NAMES} - {""}),
    )
    return _files(
        str(path),
        path.parent,
        [
            (row["path"], row["label"], row.get("group") or "", SPLIT_NAMES.get(split))
            for row, split in zip(rows, given, strict=True)
        ],
    )


def _npz(path: Path) -> Source:
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except (ValueError, OSError, EOFError, KeyError) as error:
        raise DataError(f"{path}: not an .npz file that numpy can read ({error})") from error
    except Exception as error:  # zipfile and zlib raise their own classes for damage
        raise DataError(f"{path}: the archive is damaged ({error})") from error
    present = [split for split in SPLITS if f"{split}_images" in arrays and f"{split}_labels" in arrays]
    if "train" not in present:
        raise DataError(f"{path}: no arrays train_images and train_labels; there are {', '.join(arrays) or 'none'}")
    for split in present:
        images, labels = arrays[f"{split}_images"], arrays[f"{split}_labels"]
        if images.dtype != np.uint8 or images.ndim not in (3, 4) or images.shape[3:] not in ((), (1,), (3,)):
            raise DataError(
                f"{path}: {split}_images is {images.dtype} {images.shape}; expected uint8 (n, h, w) or (n, h, w, 3)"
            )
        if labels.size != len(images):
            raise DataError(f"{path}: {split}_labels holds {labels.size} labels for {len(images)} images")
    order = [(split, i) for split in present for i in range(len(arrays[f"{split}_images"]))]
    return Source(
        name=str(path),
        keys=[f"{path.name}#{split}/{i}" for split, i in order],
        labels=[str(label) for split in present for label in arrays[f"{split}_labels"].ravel()],
        groups=[""] * len(order),
        splits=[split for split, _ in order],
        read=lambda i: arrays[f"{order[i][0]}_images"][order[i][1]],
    )


def _files(name: str, root: Path, rows: list[tuple[str, str, str, Split | None]]) -> Source:
    keys = [key for key, _, _, _ in rows]
    return Source(
        name=name,
        keys=keys,
        labels=[label for _, label, _, _ in rows],
        groups=[group for _, _, group, _ in rows],
        splits=[split for _, _, _, split in rows],
        read=lambda i: (root / keys[i]).read_bytes(),
    )


def _subfolders(root: Path) -> list[Path]:
    return sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith((".", "__")))


def _labelled(root: Path) -> list[tuple[Path, str]]:
    """Every image below the class folders of `root`, however deep, in a fixed order."""
    return [
        (Path(folder) / name, class_folder.name)
        for class_folder in _subfolders(root)
        for folder, folders, names in os.walk(class_folder, followlinks=True)
        if folders.sort() is None
        for name in sorted(names)
        if Path(name).suffix.lower() in ENDINGS and not name.startswith(".")
    ]


def _refuse(path: Path, what: str, found: Iterable[str]) -> None:
    names = list(found)
    if names:
        shown = "".join(f"\n  {name}" for name in names[:NAMES_SHOWN])
        more = f"\n  and {len(names) - NAMES_SHOWN:,} more" if len(names) > NAMES_SHOWN else ""
        raise DataError(f"{path}: {what}: {len(names):,}{shown}{more}")


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


def _pixels(raw: bytes | np.ndarray, channels: Channels) -> Decoded:
    return contract.decode(raw, channels) if isinstance(raw, bytes) else contract.as_channels(raw, channels)


def _decode_all(source: Source, preprocessing: Preprocessing) -> tuple[np.ndarray, list[Digest], dict[str, str]]:
    """All images through the contract, in threads (OpenCV releases the lock); content digests; what is unreadable."""
    count = len(source.keys)
    images = np.zeros((count, preprocessing.height, preprocessing.width, preprocessing.channels), np.uint8)
    digests = [Digest("")] * count
    unreadable: dict[str, str] = {}

    def decode(i: int) -> None:
        try:
            raw = source.read(i)
            images[i] = preprocessing.fit(_pixels(raw, preprocessing.channels))
            digests[i] = Digest(hashlib.sha256(raw if isinstance(raw, bytes) else raw.tobytes()).hexdigest())
        except (ImageError, OSError) as error:
            unreadable[source.keys[i]] = str(error)

    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        for _ in tqdm(pool.map(decode, range(count)), "decode", count, unit=" images", disable=None, leave=False):
            pass
    for key, reason in sorted(unreadable.items())[:NAMES_SHOWN]:
        print(f"skipped {key}: {reason}")
    if len(unreadable) > UNREADABLE_SHARE_AT_MOST * count:
        raise DataError(f"{source.name}: {len(unreadable):,} of {count:,} images cannot be read, more than 1 %")
    return images, digests, unreadable


def _natural(label: str) -> tuple[bool, int, str]:
    """Sort numbers as numbers, before words."""
    return (not label.isdecimal(), int(label) if label.isdecimal() else 0, label)


def _together(groups: Sequence[str], digests: Sequence[str]) -> np.ndarray:
    """Number the sets of images that must not be parted: those linked by a common group or by identical content."""
    nodes = [("group", group) if group else ("alone", str(i)) for i, group in enumerate(groups)]
    numbers = {node: number for number, node in enumerate(dict.fromkeys(nodes))}
    contents = {digest: number for number, digest in enumerate(dict.fromkeys(digests), len(numbers))}
    by_group = np.array([numbers[node] for node in nodes])
    by_content = np.array([contents[digest] for digest in digests])
    side = len(numbers) + len(contents)
    links = coo_matrix((np.ones(len(nodes)), (by_group, by_content)), shape=(side, side))
    _, component = connected_components(links, directed=False)
    together: np.ndarray = component[by_group]
    return together


def _complete_splits(
    classes: Sequence[str],
    labels: np.ndarray,
    components: np.ndarray,
    given: Sequence[Split | None],
    config: TrainConfig,
) -> dict[Split, np.ndarray]:
    """Make the splits that the data does not bring out of its training images: stratified, grouped, seeded."""
    splits = np.array([split or "train" for split in given])
    shares: dict[Split, float] = {"test": config.test_fraction, "val": config.val_fraction}
    missing = {split: share for split, share in shares.items() if split not in splits}
    rng = np.random.default_rng(config.seed)
    # A component that reaches into a split the data brought stays where it is.
    settled = np.zeros(components.max() + 1, bool)
    settled[components[splits != "train"]] = True
    rarest_first = np.argsort(np.bincount(labels), kind="stable")
    for label in rarest_first if missing else ():
        mine = np.flatnonzero((labels == label) & (splits == "train"))
        members, sizes = np.unique(components[labels == label], return_counts=True)
        if len(members) < 2:
            raise DataError(f"class {classes[label]}: its {sizes.sum()} images are one group, which cannot be split")
        drawn = rng.permutation(np.flatnonzero(~settled[members]))
        stays = int(settled[members].sum() == 0)  # one of them at least remains for training
        for split, share in missing.items():
            there = (splits[labels == label] == split).sum()
            within = np.searchsorted(np.cumsum(sizes[drawn]), share * len(mine) - there, side="right")
            taken, drawn = np.split(drawn, [min(max(within, int(there == 0)), max(len(drawn) - stays, 0))])
            splits[np.isin(components, members[taken])] = split
        settled[members] = True
    return {split: np.flatnonzero(splits == split) for split in SPLITS}


def _check_classes(classes: Sequence[str], labels: np.ndarray) -> None:
    if len(classes) < 2:
        raise DataError(f"only one class ({classes[0] if classes else 'none'}); a classifier needs at least two")
    counts = np.bincount(labels, minlength=len(classes))
    single = [name for name, count in zip(classes, counts, strict=True) if count < 2]
    if single:
        raise DataError(f"classes with one image only, which cannot be both learned and tested: {', '.join(single)}")


def _check_splits(classes: Sequence[str], labels: np.ndarray, splits: dict[Split, np.ndarray]) -> None:
    learned = set(labels[splits["train"]])
    absent = [name for label, name in enumerate(classes) if label not in learned]
    if absent:
        raise DataError(f"classes without a training image: {', '.join(absent)}")
    empty = [split for split in SPLITS if not len(splits[split])]
    if empty:
        raise DataError(f"no images in the {' and '.join(empty)} split")
