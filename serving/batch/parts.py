"""Resumable output: a table that is written in parts, one file for each, and made of them at the end.

A part gets its name when it is complete. A process that is killed therefore leaves whole parts, and perhaps a
temporary file that the next process overwrites.
"""

import csv
import hashlib
import io
import os
from array import array
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import numpy as np
from filelock import FileLock, Timeout

from serving.batch.parquet import write_parquet

UNREADABLE = "unreadable_file"
"""Code of the error of a file that could not be read; a resumed call tries it again."""
COMPLETE = "complete"
"""File in a folder that has all its parts: their number."""


class Busy(RuntimeError):
    """Another process writes the same table."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """Some rows of the table as CSV, their number, and the number of failed ones by error code."""

    rows: bytes
    images: int
    failed: Counter[str]


def encode(rows: Sequence[Sequence[object]]) -> bytes:
    """Rows as CSV. A path that is not UTF-8 keeps its bytes."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue().encode("utf-8", "surrogateescape")


class PartFiles:
    """The parts of an unfinished table, in a folder. Use it as a context manager, which holds the folder's lock.

    The first column of the table is the key of a row. The column `error` holds `code: message`, or nothing. In memory,
    a row of an earlier process takes eight bytes, and a row of this process none. Raises Busy, OSError.
    """

    def __init__(self, folder: Path, columns: Sequence[str]) -> None:
        self._folder = folder
        self._columns = columns
        self._count = 0
        self._lock = FileLock(folder / "lock", blocking=False)
        self.images = 0
        """Rows that earlier processes wrote."""
        self.failed: Counter[str] = Counter()
        """The failed ones of these rows, by error code."""

    def __enter__(self) -> "PartFiles":
        self._folder.mkdir(exist_ok=True)
        try:
            self._lock.acquire()
        except Timeout as timeout:
            raise Busy(f"{self._folder}: another process writes to it") from timeout
        while self._part(self._count).exists():
            self._count += 1
        self._read_keys()
        if self.failed[UNREADABLE]:  # the storage may have failed for a while
            error = self._columns.index("error")
            self._keep(lambda row: not row[error].startswith(f"{UNREADABLE}:"))
            self._read_keys()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._lock.release()

    def is_done(self, key: str) -> bool:
        """Whether an earlier process wrote a row with this key. Each call with the same key counts one such row."""
        if not self.images:
            return False
        digest = np.uint64(_digest(key))
        place = int(np.searchsorted(self._digests, digest))
        if place == len(self._digests) or self._digests[place] != digest or not self._remaining[place]:
            return False
        self._remaining[place] -= 1
        return True

    def append(self, part: Part) -> None:
        """Write the next part."""
        self._write(self._count, part.rows)
        self._count += 1

    def complete(self) -> int:
        """Record that no part will follow. Returns the rows left out: those whose images no `is_done` has asked for."""
        unlisted = np.flatnonzero(self._remaining)
        left_out = dict(zip(self._digests[unlisted].tolist(), self._remaining[unlisted].tolist(), strict=True))
        count = sum(left_out.values())

        def is_listed(row: list[str]) -> bool:
            digest = _digest(row[0])
            if not left_out.get(digest):
                return True
            left_out[digest] -= 1
            self._count_error(row, -1)
            return False

        if count:
            self._keep(is_listed)
        (self._folder / "complete.tmp").write_text(str(self._count))
        (self._folder / "complete.tmp").replace(self._folder / COMPLETE)
        return count

    def _count_error(self, row: list[str], by: int) -> None:
        if error := row[self._columns.index("error")]:
            self.failed[error.partition(":")[0]] += by

    def _keep(self, is_kept: Callable[[list[str]], bool]) -> None:
        """Remove the other rows from the parts."""
        for number in range(self._count):
            rows = list(_rows_of(self._part(number)))
            kept = [row for row in rows if is_kept(row)]
            if len(kept) < len(rows):
                self._write(number, encode(kept))

    def _write(self, number: int, rows: bytes) -> None:
        temporary = self._folder / "part.tmp"
        temporary.write_bytes(rows)
        temporary.replace(self._part(number))

    def _part(self, number: int) -> Path:
        return _part(self._folder, number)

    def _read_keys(self) -> None:
        self.failed.clear()
        digests = array("Q")
        for row in _rows(self._folder, self._count):
            digests.append(_digest(row[0]))
            self._count_error(row, 1)
        self.images = len(digests)
        self._digests, self._remaining = np.unique(np.frombuffer(digests, np.uint64), return_counts=True)


def is_complete(folder: Path) -> bool:
    """Whether the folder has all its parts."""
    return (folder / COMPLETE).exists()


def write_table(path: Path, columns: Sequence[str], folders: Sequence[Path]) -> None:
    """Write the rows of complete folders, one folder after the other, as CSV or Parquet by the path's suffix.

    Raises FileNotFoundError when a folder is removed meanwhile, OSError.
    """
    counts = [int((folder / COMPLETE).read_text()) for folder in folders]
    if path.suffix == ".parquet":
        write_parquet(path, columns, (row for pair in zip(folders, counts, strict=True) for row in _rows(*pair)))
        return
    with path.open("wb") as file:
        file.write(encode([columns]))
        for folder, count in zip(folders, counts, strict=True):
            for number in range(count):
                file.write(_part(folder, number).read_bytes())
        file.flush()
        os.fsync(file.fileno())


def _part(folder: Path, number: int) -> Path:
    return folder / f"{number}.csv"


def _rows(folder: Path, count: int) -> Iterator[list[str]]:
    for number in range(count):
        yield from _rows_of(_part(folder, number))


def _rows_of(part: Path) -> Iterator[list[str]]:
    with part.open(newline="", encoding="utf-8", errors="surrogateescape") as file:
        yield from csv.reader(file)


def _digest(key: str) -> int:
    digest = hashlib.blake2b(key.encode("utf-8", "surrogateescape"), digest_size=8).digest()
    return int.from_bytes(digest, "little")
