"""Rows of CSV that outlive the process that writes them: appended to a file beside the one that is wanted.

Killed at any moment, the file holds whole rows and perhaps a piece of one, which is cut off when it is taken up again.
"""

import csv
import fcntl
import hashlib
import io
import json
import os
from array import array
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType

import numpy as np

ROW_GROUP = 10_000


class Busy(RuntimeError):
    """Another process writes to this file."""


def encode(rows: Sequence[Sequence[object]]) -> bytes:
    """Rows as CSV; names that are no UTF-8 keep their bytes."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue().encode("utf-8", "surrogateescape")


class Journal:
    """A table under way: `header` once, then rows, the first cell of each the key of what is done.

    Where there is a column `error`, its cells are `code: message` or empty. Of what is done no more is remembered than
    eight bytes a key. Raises Busy, OSError.
    """

    def __init__(self, path: Path, header: Sequence[str]) -> None:
        self.path = path
        self.rows = 0
        """Rows that were there when it was opened."""
        self.failed: Counter[str] = Counter()
        """By code, those of them that are errors."""
        error = header.index("error")
        self._file = path.open("a+b")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as busy:
            raise Busy(f"{path}: another process writes to it") from busy
        digests, complete = array("Q"), 0
        for record in _records(path):
            complete += len(record)
            if complete > len(record):  # the first one is the header
                cells = _cells(record)
                digests.append(_digest(cells[0]))
                if cells[error]:
                    self.failed[cells[error].partition(":")[0]] += 1
        self._file.truncate(complete)
        if complete == 0:
            self.append(encode([header]))
        self.rows = len(digests)
        self._done, self._times = np.unique(np.frombuffer(digests, np.uint64), return_counts=True)

    def __enter__(self) -> "Journal":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._file.close()

    def is_done(self, key: str) -> bool:
        """Whether there was a row of this key when the journal was opened; asked again, a second one."""
        if not self.rows:
            return False
        digest = np.uint64(_digest(key))
        place = int(np.searchsorted(self._done, digest))
        if place == len(self._done) or self._done[place] != digest or not self._times[place]:
            return False
        self._times[place] -= 1
        return True

    def append(self, rows: bytes) -> None:
        """Add encoded rows."""
        self._file.write(rows)
        self._file.flush()

    def finish(self, out: Path) -> None:
        """Become `out`, in one step; CSV as it is, or Parquet by its ending."""
        os.fsync(self._file.fileno())
        if out.suffix == ".parquet":
            _to_parquet(self.path, out)
            self.path.unlink()
        else:
            self.path.replace(out)


def _digest(key: str) -> int:
    digest = hashlib.blake2b(key.encode("utf-8", "surrogateescape"), digest_size=8).digest()
    return int.from_bytes(digest, "little")


def _records(path: Path) -> Iterator[bytes]:
    """Each complete row; a quoted cell may hold line ends."""
    record = b""
    with path.open("rb") as file:
        for line in file:
            record += line
            if line.endswith(b"\n") and record.count(b'"') % 2 == 0:
                yield record
                record = b""


def _cells(record: bytes) -> list[str]:
    return next(csv.reader(io.StringIO(record.decode("utf-8", "surrogateescape"), newline="")))


def _to_parquet(source: Path, out: Path) -> None:
    """A table of the same columns: probabilities as numbers, the prediction set as a list, what is absent as null."""
    import pyarrow  # noqa: PLC0415 (an extra, which only this needs)
    from pyarrow import parquet  # noqa: PLC0415

    records = _records(source)
    names = _cells(next(records))
    kinds = {"prediction_set": pyarrow.list_(pyarrow.string()), "confidence": pyarrow.float32()}
    schema = pyarrow.schema(
        [(name, pyarrow.float32() if name.startswith("p_") else kinds.get(name, pyarrow.string())) for name in names]
    )

    def value(name: str, cell: str) -> object:
        if cell == "":
            return None
        if name == "prediction_set":
            return json.loads(cell)
        if name == "confidence" or name.startswith("p_"):
            return float(cell)
        return cell.encode("utf-8", "surrogateescape").decode("utf-8", "replace")

    candidate = out.with_name(f".{out.name}.candidate")
    with parquet.ParquetWriter(candidate, schema) as writer:
        group: list[dict[str, object]] = []
        for record in records:
            group.append({name: value(name, cell) for name, cell in zip(names, _cells(record), strict=True)})
            if len(group) == ROW_GROUP:
                writer.write_batch(pyarrow.RecordBatch.from_pylist(group, schema))
                group = []
        writer.write_batch(pyarrow.RecordBatch.from_pylist(group, schema))
    candidate.replace(out)
