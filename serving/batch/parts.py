"""Resumable output: a table that is written in parts, one file for each, and merged at the end.

A part gets its name when it is complete. A process that is killed therefore leaves whole parts, and perhaps a
temporary file that the next process overwrites.
"""

import csv
import hashlib
import io
import os
import shutil
from array import array
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import numpy as np
from filelock import FileLock, Timeout

from serving.batch.parquet import write_parquet


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
        temporary = self._folder / "part.tmp"
        temporary.write_bytes(part.rows)
        temporary.replace(self._part(self._count))
        self._count += 1

    def merge(self, out: Path) -> None:
        """Write the table to `out`, CSV or Parquet by its suffix, and remove the parts. `out` appears complete."""
        candidate = out.with_name(f".{out.name}.candidate")
        if out.suffix == ".parquet":
            write_parquet(candidate, self._columns, self._rows())
        else:
            self._write_csv(candidate)
        candidate.replace(out)
        shutil.rmtree(self._folder)

    def _part(self, number: int) -> Path:
        return self._folder / f"{number}.csv"

    def _rows(self) -> Iterator[list[str]]:
        for number in range(self._count):
            with self._part(number).open(newline="", encoding="utf-8", errors="surrogateescape") as file:
                yield from csv.reader(file)

    def _read_keys(self) -> None:
        digests, error = array("Q"), self._columns.index("error")
        for row in self._rows():
            digests.append(_digest(row[0]))
            if row[error]:
                self.failed[row[error].partition(":")[0]] += 1
        self.images = len(digests)
        self._digests, self._remaining = np.unique(np.frombuffer(digests, np.uint64), return_counts=True)

    def _write_csv(self, candidate: Path) -> None:
        with candidate.open("wb") as file:
            file.write(encode([self._columns]))
            for number in range(self._count):
                file.write(self._part(number).read_bytes())
            file.flush()
            os.fsync(file.fileno())


def _digest(key: str) -> int:
    digest = hashlib.blake2b(key.encode("utf-8", "surrogateescape"), digest_size=8).digest()
    return int.from_bytes(digest, "little")
