"""Images that were forgotten, by digests of their content: all that reads data for a folder of runs leaves them out.

The list is a table in the folder of runs. It counts for that folder and for all below it, such as those of studies.
"""

import csv
import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np

from training.data.sources.source import Source
from training.errors import DataError
from training.storage import locked, write_atomically

LIST = "forgotten-images.csv"
LOCK = ".forgotten-images.lock"


class Content(NamedTuple):
    """By what an image is recognised, as `Source.read` returns it: the number of its bytes, and their SHA-256."""

    size: int
    sha256: str

    @classmethod
    def of(cls, raw: bytes | np.ndarray) -> "Content":
        """That of an image."""
        content = raw if isinstance(raw, bytes) else raw.tobytes()
        return cls(len(content), hashlib.sha256(content).hexdigest())


@dataclass(frozen=True)
class Forgotten:
    """The images of the lists that count for a folder; none by default."""

    contents: frozenset[Content] = frozenset()

    @classmethod
    def of(cls, folder: Path) -> "Forgotten":
        """What counts for a folder of runs, or for a run or a file in it. Raises DataError, OSError."""
        place = folder.resolve()
        lists = [path for above in (place, *place.parents) if (path := above / LIST).is_file()]
        return cls(frozenset(content for path in lists for content in _read(path)))

    @property
    def identity(self) -> tuple[str, ...]:
        """What a cache entry depends on that is made without these images."""
        return tuple(sorted(content.sha256 for content in self.contents))

    def holds(self, raw: bytes | np.ndarray) -> bool:
        """Whether an image, as `Source.read` returns it, is one of these."""
        size = len(raw) if isinstance(raw, bytes) else raw.nbytes
        return size in self._sizes and Content.of(raw) in self.contents

    def without(self, source: Source) -> Source:
        """The source without these images, and with a note on their number. Raises OSError."""
        gone = self._positions(source) if self.contents else frozenset()
        if not gone:
            return source
        kept = [position for position in range(len(source.keys)) if position not in gone]
        many = f"{len(gone):,} images are" if len(gone) > 1 else "1 image is"
        note = f"{many} left out, by the list of forgotten images ({LIST} in the folder of runs)."
        return replace(
            source,
            identity=hashlib.sha256(repr((source.identity, kept)).encode()).hexdigest(),
            keys=[source.keys[i] for i in kept],
            labels=[source.labels[i] for i in kept],
            groups=[source.groups[i] for i in kept],
            splits=[source.splits[i] for i in kept],
            read=lambda i: source.read(kept[i]),
            size=lambda i: source.size(kept[i]),
            columns={name: [values[i] for i in kept] for name, values in source.columns.items()},
            notes=[*source.notes, note],
            forgotten=frozenset(),
        )

    def _positions(self, source: Source) -> frozenset[int]:
        """Positions of these images; of most, the size alone says that they are others."""
        positions = range(len(source.keys))
        return source.forgotten | {i for i in positions if source.size(i) in self._sizes and self.holds(source.read(i))}

    @cached_property
    def _sizes(self) -> frozenset[int]:
        return frozenset(content.size for content in self.contents)


NOTHING = Forgotten()


def add(folder: Path, contents: Iterable[Content]) -> Path:
    """Add images to the list of a folder of runs, and return its path. Raises DataError, OSError."""
    path = folder / LIST
    with locked(folder / LOCK):
        listed = _read(path) if path.exists() else []
        rows = dict.fromkeys([*listed, *sorted(contents)])
        text = "".join(f"{size},{sha256}\n" for size, sha256 in rows)
        write_atomically(path, lambda file: file.write(f"bytes,sha256\n{text}".encode()))
    return path


def _read(path: Path) -> list[Content]:
    try:
        with path.open(newline="", encoding="utf-8") as file:
            return [Content(int(row["bytes"]), row["sha256"]) for row in csv.DictReader(file)]
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{path}: expected a table with columns bytes and sha256, as `forget` writes it") from error
