"""Entries of caches that hold a person's images: their digests, or their pixels at any size."""

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pydantic import TypeAdapter, ValidationError

from training.data import duplicates
from training.data.cache import SEAL, VALUE
from training.data.duplicates import FINGERPRINT
from training.data.inspection.contents import Contents
from training.data.inspection.threads import in_threads
from training.errors import ConfigError
from training.forgetting.person import Person

_CONTENTS = TypeAdapter(Contents)
PARTIAL = ".partial"


@dataclass(frozen=True, kw_only=True)
class CacheEntry:
    """An entry, which may be deleted at any time: it is made again."""

    folder: Path
    images: int | None
    """How many it is about; None: not known, so that it cannot be cleared."""
    holds: bool
    """A digest or the pixels of one of the person's images."""

    def erase(self) -> None:
        """Delete it. Raises OSError."""
        shutil.rmtree(self.folder)


def held(folders: list[Path], person: Person) -> list[CacheEntry]:
    """The entries that hold an image of the person, and those of as many images as one of them in the same cache.

    These are of the same data, mostly: they cost a reading of it, not a result. Raises OSError.
    """
    entries = [_inspected(folder, person) for folder in folders]
    sizes = {(entry.folder.parent, entry.images) for entry in entries if entry.holds}
    return [
        entry
        for entry in entries
        if entry.holds or (entry.images is not None and (entry.folder.parent, entry.images) in sizes)
    ]


def is_entry(folder: Path) -> bool:
    """Whether a folder is an entry of a cache, or what is left of one whose process was killed."""
    return (folder / SEAL).is_file() or (folder.name.startswith(".") and folder.name.endswith(PARTIAL))


def _inspected(folder: Path, person: Person) -> CacheEntry:
    if folder.name.endswith(PARTIAL):
        return CacheEntry(folder=folder, images=None, holds=True)
    if not (folder / VALUE).is_file():
        arrays = list(_arrays(folder))
        return CacheEntry(
            folder=folder,
            images=max((len(array) for array in arrays), default=None),
            holds=any(_shows(array, person) for array in arrays),
        )
    content = (folder / VALUE).read_bytes()
    try:
        images = len(_CONTENTS.validate_json(content).files)
    except ValidationError:  # a summary of all images, such as the score of the baseline, or of an older version
        images = None
    return CacheEntry(folder=folder, images=images, holds=any(digest.encode() in content for digest in person.digests))


def _arrays(folder: Path) -> Iterator[np.ndarray]:
    for path in sorted(folder.glob("*.npy")):
        try:
            yield np.load(path, mmap_mode="r", allow_pickle=False)
        except ValueError as error:
            raise ConfigError(f"{path}: cannot be read ({error}); a cache may be deleted at any time") from error


def _shows(images: np.ndarray, person: Person) -> bool:
    """Whether a row shows one of the person's pictures, by the audit's rule among these rows."""
    if images.dtype != np.uint8 or images.ndim not in (3, 4) or not len(images) or not person.pictures:
        return False
    rows = in_threads(lambda row: _fingerprint(images[row]), range(len(images)), "compare")
    known = np.fromiter(rows, FINGERPRINT, len(images))
    pictures = person.fingerprints_at(*images.shape[1:3])
    return bool(duplicates.copies(pictures, known, duplicates.required_similarity(known)))


def _fingerprint(row: np.ndarray) -> np.ndarray:
    return duplicates.fingerprint(np.ascontiguousarray(np.atleast_3d(row)))
