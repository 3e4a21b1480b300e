"""Labelled images before any is read, from whatever they are listed in."""

import hashlib
import os
import posixpath
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple, get_args

import numpy as np

from training.errors import DataError

Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)
SPLIT_NAMES: dict[str, Split] = {
    "train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "dev": "val",
    "test": "test", "testing": "test", "eval": "test", "evaluation": "test",
}  # fmt: skip
"""Names of splits, in lower case, in folders, manifests and .npz files."""
NAMES_SHOWN = 20


class Row(NamedTuple):
    """One image file: its path below the root of its source, its label, its group and its split."""

    path: str
    label: str
    group: str
    split: Split | None


@dataclass(frozen=True, kw_only=True)
class Source:
    """Labelled images before any is read. All lists of images have one entry for each."""

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
    size: Callable[[int], int]
    """Number of bytes of image i, without reading it; 0 where they are not needed or cannot be read."""
    columns: dict[str, list[str]] = field(default_factory=dict)
    """What else a manifest says of each image, such as its site. An empty string: nothing."""
    ignored: list[str] = field(default_factory=list)
    """Files in class folders whose names have no ending of an accepted format."""
    notes: list[str] = field(default_factory=list)
    """Sentences on what was left out, or may not be meant."""
    forgotten: frozenset[int] = frozenset()
    """Positions of forgotten images, which are blank already."""
    release: Callable[[], None] = lambda: None
    """Release the memory of mapped images that were read."""


def of_files(root: Path, rows: Sequence[Row], *, name: str, ignored: Sequence[str], notes: Sequence[str]) -> Source:
    """The source of image files below `root`. Raises DataError for names that are not UTF-8."""
    paths = [row.path for row in rows]
    refuse(Path(name), "file names that are not UTF-8", (ascii(path) for path in paths if not is_utf8(path)))
    refuse(Path(name), "labels that are not UTF-8", sorted({ascii(r.label) for r in rows if not is_utf8(r.label)}))
    alike = [
        *alike_but_for_case("class names", (row.label for row in rows)),
        *alike_but_for_case("groups", (row.group for row in rows)),
    ]
    return Source(
        name=name,
        identity=identity(root, paths),
        keys=paths,
        labels=[row.label for row in rows],
        groups=[row.group for row in rows],
        splits=[row.split for row in rows],
        read=lambda i: (root / paths[i]).read_bytes(),
        size=lambda i: (_state(root / paths[i]) or (0,))[0],
        ignored=list(ignored),
        notes=[*notes, *alike],
    )


def splits_of(words: Iterable[str]) -> dict[str, Split]:
    """What those of the words that are SPLIT_NAMES mean: beside a test split, eval is for validation."""
    splits = {word: SPLIT_NAMES[word] for word in words if word in SPLIT_NAMES}
    if any(word.startswith("test") for word in splits):
        splits |= {word: "val" for word in splits if word.startswith("eval")}
    return splits


def alike_but_for_case(what: str, names: Iterable[str]) -> list[str]:
    """A sentence where names differ in nothing but upper and lower case; they stay apart."""
    forms: dict[str, set[str]] = defaultdict(set)
    for name in set(names):
        forms[name.casefold()].add(name)
    alike = [" and ".join(sorted(same)) for same in forms.values() if len(same) > 1]
    return [f"{what} that differ only by case count as different: {shortened(sorted(alike))}."] if alike else []


def shortened(names: Sequence[str]) -> str:
    """Up to NAMES_SHOWN names in a line, and the number of the others."""
    more = f" and {len(names) - NAMES_SHOWN:,} more" if len(names) > NAMES_SHOWN else ""
    return ", ".join(names[:NAMES_SHOWN]) + more


def refuse(path: Path | str, what: str, offenders: Iterable[str]) -> None:
    """Raise DataError that lists the offenders, if there are any."""
    names = list(offenders)
    if names:
        shown = "".join(f"\n  {name}" for name in names[:NAMES_SHOWN])
        more = f"\n  and {len(names) - NAMES_SHOWN:,} more" if len(names) > NAMES_SHOWN else ""
        raise DataError(f"{path}: {what}: {len(names):,}{shown}{more}")


def plain(path: str) -> str:
    """A path without `./` and `//`, in Unicode's form NFC: on a disk other spellings lead to the same file."""
    return unicodedata.normalize("NFC", posixpath.normpath(path))


def is_utf8(name: str) -> bool:
    """Python keeps other bytes of a file name as surrogates, which cannot be written into a report."""
    return not any("\ud800" <= character <= "\udfff" for character in name)


def identity(root: Path, paths: Sequence[str]) -> str:
    """A digest of the paths, the sizes, the times of the last change and whether the files may be read."""
    states = [(path, _state(root / path)) for path in paths]
    return hashlib.sha256(repr((root.resolve(), states)).encode()).hexdigest()


def _state(path: Path) -> tuple[int, int, int] | None:
    if not os.access(path, os.R_OK):
        return None
    status = path.stat()
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns
