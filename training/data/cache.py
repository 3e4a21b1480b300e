"""What one run makes of the data and the next ones find again: values as JSON, and arrays mapped into memory.

An entry is a folder. Its name is a digest of what it was made from and of the code that made it, so an entry is never
out of date: whatever changes asks for another one. The folder may be removed at any time, whole or in part.
"""

import errno
import fcntl
import hashlib
import os
import shutil
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TypeVar

import cv2
import numpy as np
import sklearn
from pydantic import TypeAdapter

from training.storage import sync

T = TypeVar("T")

ROOT = Path(__file__).parent.parent.parent
MADE_BY = (
    "serving/contract/card.py",
    "serving/contract/image_header.py",
    "training/data/cache.py",
    "training/data/dataset.py",
    "training/data/duplicates.py",
    "training/data/inspection.py",
    "training/data/metadata_baseline.py",
    "training/data/formats.py",
)
LIBRARIES = (cv2, np, sklearn)
KEPT = 5
"""Entries of a kind that are kept, those used last; making another one removes the rest."""
SEAL = "seal.json"
VALUE = "value.json"
BLOCK = 2**20

_PARTS = TypeAdapter(dict[str, tuple[int, int]])


@dataclass(frozen=True)
class Cache:
    """Entries in `folder`, each made once, also when two processes ask for it at the same time.

    Without a folder everything is made anew and nothing is kept. An entry that is not as it was written is made again.
    Both methods raise OSError, naming --cache, when there is no place for a new entry.
    """

    folder: Path | None = None

    def value(self, kind: str, identity: object, adapter: TypeAdapter[T], make: Callable[[], T]) -> T:
        """What `make` gives, by way of JSON; `identity`, told apart by its repr, is what it depends on."""

        def write(folder: Path) -> None:
            (folder / VALUE).write_bytes(adapter.dump_json(make()))

        return self._entry(kind, identity, write, lambda folder: adapter.validate_json((folder / VALUE).read_bytes()))

    def arrays(self, kind: str, identity: object, make: Callable[[Path], None]) -> dict[str, np.ndarray]:
        """The arrays that `make` leaves as .npy files in the folder it is given, by name: mapped, not to be written."""
        return self._entry(kind, identity, make, _mapped)

    def _entry(self, kind: str, identity: object, make: Callable[[Path], None], read: Callable[[Path], T]) -> T:
        if self.folder is None:
            with TemporaryDirectory(prefix="twinlens-") as temporary, _room(Path(temporary)):
                make(Path(temporary))
                return read(Path(temporary))  # what is mapped outlives its name
        digest = hashlib.sha256(repr((identity, _made_by())).encode()).hexdigest()
        entry = self.folder / f"{kind}-{digest[:16]}"
        with suppress(OSError):  # a cache that is only read from will do
            os.utime(entry)
        if _fault(entry) is not None:
            with _alone(entry):
                fault = _fault(entry)
                if fault is not None:  # nobody has made it in the meantime
                    if entry.exists():
                        print(f"cache  {entry}: {fault}; it is made again")
                    with _room(self.folder):
                        _make(entry, make)
                    _forget(self.folder, kind)
        return read(entry)


@cache
def _made_by() -> str:
    """A digest of the code that entries are made by; one more entry costs less than a version that nobody raised."""
    code = [(ROOT / name).read_bytes() for name in MADE_BY]
    return hashlib.sha256(repr((code, [library.__version__ for library in LIBRARIES])).encode()).hexdigest()


@contextmanager
def _alone(entry: Path) -> Iterator[None]:
    """Wait until no other process makes this entry; the kernel ends the turn of one that dies."""
    try:
        entry.parent.mkdir(parents=True, exist_ok=True)
        lock = entry.with_name(f".{entry.name}.lock").open("w")  # never removed, or two could hold it
    except OSError as error:
        raise _elsewhere(error, entry.parent) from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"cache  waiting for another process that makes {entry}")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@contextmanager
def _room(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise _elsewhere(error, folder) from error
        raise


def _elsewhere(error: OSError, folder: Path) -> OSError:
    assert error.errno is not None
    return OSError(error.errno, f"{os.strerror(error.errno)}; --cache names another place", str(folder))


def _make(entry: Path, make: Callable[[Path], None]) -> None:
    """Make an entry under another name, which becomes its own when all of it is on the disk."""
    partial = entry.with_name(f".{entry.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)  # of a process that died
    partial.mkdir()
    try:
        make(partial)
        parts = {part.name: (part.stat().st_size, _checksum(part)) for part in partial.iterdir()}
        (partial / SEAL).write_bytes(_PARTS.dump_json(parts))
        for path in (*partial.iterdir(), partial):
            sync(path)
        shutil.rmtree(entry, ignore_errors=True)
        partial.rename(entry)
        sync(entry.parent)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def _forget(folder: Path, kind: str) -> None:
    with suppress(FileNotFoundError):  # another process removes them too
        entries = sorted(folder.glob(f"{kind}-*"), key=lambda entry: entry.stat().st_mtime_ns)
        for entry in entries[:-KEPT]:
            shutil.rmtree(entry)


def _fault(entry: Path) -> str | None:
    """What is wrong with an entry; None when every part is as it was written."""
    try:
        for name, (size, checksum) in _PARTS.validate_json((entry / SEAL).read_bytes()).items():
            found = (entry / name).stat().st_size
            if found != size:
                return f"{name} has {found:,} bytes instead of {size:,}"
            if _checksum(entry / name) != checksum:
                return f"{name} is not what was written"
    except (OSError, ValueError) as error:
        return f"it cannot be read ({type(error).__name__})"
    return None


def _checksum(path: Path) -> int:
    """CRC-32 of a file: 3.7 GB/s, so that a whole check costs less than the first epoch's reading, which it spares."""
    checksum = 0
    with path.open("rb", buffering=0) as file:
        while block := file.read(BLOCK):
            checksum = zlib.crc32(block, checksum)
    return checksum


def _mapped(folder: Path) -> dict[str, np.ndarray]:
    return {path.stem: np.load(path, mmap_mode="r", allow_pickle=False) for path in folder.glob("*.npy")}
