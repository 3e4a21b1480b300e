"""Results of one run that later runs use again: values as JSON, and arrays that are mapped into memory.

An entry is a folder. Its name is a digest of its input, of the code that makes entries and of the installed libraries.
A change of any of them gives another name, so an entry is never out of date. Any part of the cache may be deleted at
any time.
"""

import errno
import functools
import hashlib
import os
import shutil
import sys
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Generic, TypeVar

import numpy as np
from filelock import FileLock, Timeout
from pydantic import TypeAdapter

from training.storage import sync

T = TypeVar("T")

DATA = Path(__file__).parent
CONTRACT = DATA.parent.parent / "serving" / "contract"
PACKAGES = (CONTRACT, DATA)
"""Folders of the code that makes entries, with all folders in them."""
ENTRIES_OF_A_KIND = 5
"""Before an entry is made, all others of its kind are deleted but those that were used last."""
SEAL = "seal.json"
"""File in an entry with the size and the checksum of each other file; it is written last."""
VALUE = "value.json"
BLOCK = 2**20

_PARTS = TypeAdapter(dict[str, tuple[int, int]])


@functools.cache
def code_digest(packages: Sequence[Path] = PACKAGES, search_path: Sequence[str] | None = None) -> str:
    """SHA-256 of all Python files below `packages`, and of names and versions of the libraries in `search_path`.

    Some of them change no entry. A superfluous entry costs less than an old one that is taken for a new one.
    `search_path` is `sys.path` by default. A library's name and version are those of its .dist-info folder: to read the
    metadata of all of them takes a second.
    """
    files = [(folder, path) for folder in packages for path in sorted(folder.rglob("*.py"))]
    code = [(path.relative_to(folder).as_posix(), path.read_bytes()) for folder, path in files]
    places = [Path(place) for place in (sys.path if search_path is None else search_path)]
    libraries = sorted({path.name for place in places for path in place.glob("*.dist-info")})
    return hashlib.sha256(repr((code, libraries)).encode()).hexdigest()


@dataclass
class Slot(Generic[T]):
    """The value of an entry; None until it is made."""

    value: T | None = None


@dataclass(frozen=True)
class Cache:
    """Entries in `folder`. An entry is made once, also when several processes need it at the same time.

    Without a folder, every result is made again and none is kept. A damaged entry is made again. Where a new entry
    cannot be written, the methods raise OSError with the folder and a hint to --cache.
    """

    folder: Path | None = None
    code: str = field(default_factory=code_digest)
    """Digest of the code that makes entries."""

    def value(self, kind: str, identity: object, adapter: TypeAdapter[T], make: Callable[[], T]) -> T:
        """Return the result of `make`, stored as JSON. It depends on `identity`, by its repr, and on nothing else."""

        def write(folder: Path) -> None:
            _write_value(folder, adapter, make())

        return self._entry(kind, identity, write, lambda folder: _read_value(folder, adapter))

    def arrays(self, kind: str, identity: object, make: Callable[[Path], None]) -> dict[str, np.ndarray]:
        """Return the arrays that `make` writes as .npy files into a folder, by name. They are mapped and read-only."""
        return self._entry(kind, identity, make, _map_arrays)

    def find(self, kind: str, identity: object, adapter: TypeAdapter[T]) -> T | None:
        """Return the value of an entry, or None where there is no undamaged one."""
        if self.folder is None:
            return None
        entry = self._path(self.folder, kind, identity)
        return _read_value(entry, adapter) if _damage(entry) is None else None

    @contextmanager
    def slot(self, kind: str, identity: object, adapter: TypeAdapter[T]) -> Iterator[Slot[T]]:
        """Give the value of an entry. Where it is None, store what the block assigns to it.

        Until the block ends, every other process that needs this entry waits.
        """
        if self.folder is None:
            yield Slot()
            return
        entry = self._path(self.folder, kind, identity)
        with _is_missing(entry) as missing:
            slot = Slot(None if missing else _read_value(entry, adapter))
            yield slot
            if missing and (value := slot.value) is not None:
                _store(entry, kind, lambda folder: _write_value(folder, adapter, value))

    def _entry(self, kind: str, identity: object, make: Callable[[Path], None], read: Callable[[Path], T]) -> T:
        if self.folder is None:
            with TemporaryDirectory(prefix="twinlens-") as temporary, _hint_when_full(Path(temporary)):
                make(Path(temporary))
                return read(Path(temporary))  # a mapped file stays readable after it is deleted
        entry = self._path(self.folder, kind, identity)
        with _is_missing(entry) as missing:
            if missing:
                _store(entry, kind, make)
        return read(entry)

    def _path(self, folder: Path, kind: str, identity: object) -> Path:
        digest = hashlib.sha256(repr((identity, self.code)).encode()).hexdigest()
        return folder / f"{kind}-{digest[:16]}"


@contextmanager
def _is_missing(entry: Path) -> Iterator[bool]:
    """Whether an entry has to be made. If so, no other process makes it until the block ends."""
    with suppress(OSError):  # a read-only cache works, too
        os.utime(entry)
    if _damage(entry) is None:
        yield False
        return
    with _locked(entry):
        damage = _damage(entry)  # None when another process has made the entry in the meantime
        if damage is not None and entry.exists():
            print(f"cache  {entry}: {damage}; it is made again")
        yield damage is not None


@contextmanager
def _locked(entry: Path) -> Iterator[None]:
    """Wait until no other process makes this entry. The kernel frees the lock of a process that was killed."""
    lock = FileLock(entry.with_name(f".{entry.name}.lock"))  # the file stays: after a deletion, two could hold the lock
    try:
        entry.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire(blocking=False)
    except Timeout:
        print(f"cache  waiting for another process that makes {entry}", flush=True)
        lock.acquire()
    except OSError as error:
        raise _with_hint(error, entry.parent) from error
    try:
        yield
    finally:
        lock.release()


@contextmanager
def _hint_when_full(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise _with_hint(error, folder) from error
        raise


def _with_hint(error: OSError, folder: Path) -> OSError:
    assert error.errno is not None
    return OSError(error.errno, f"{error.strerror}; --cache names another place", str(folder))


def _store(entry: Path, kind: str, make: Callable[[Path], None]) -> None:
    shutil.rmtree(entry, ignore_errors=True)  # damaged; the new one may need its space, and that of the unused ones
    with suppress(FileNotFoundError):  # another process may delete the same entries
        entries = sorted(entry.parent.glob(f"{kind}-*"), key=lambda entry: entry.stat().st_mtime_ns)
        for unused in entries[: 1 - ENTRIES_OF_A_KIND]:
            shutil.rmtree(unused)
    with _hint_when_full(entry.parent):
        _make(entry, make)


def _make(entry: Path, make: Callable[[Path], None]) -> None:
    """Make an entry under a temporary name. It is renamed when all of it is on the disk."""
    partial = entry.with_name(f".{entry.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)  # left by a process that was killed
    partial.mkdir()
    try:
        make(partial)
        parts = {part.name: (part.stat().st_size, _checksum(part)) for part in partial.iterdir()}
        (partial / SEAL).write_bytes(_PARTS.dump_json(parts))
        for path in (*partial.iterdir(), partial):
            sync(path)
        partial.rename(entry)
        sync(entry.parent)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def _damage(entry: Path) -> str | None:
    """What is wrong with an entry; None when every file is as it was written."""
    try:
        for name, (size, checksum) in _PARTS.validate_json((entry / SEAL).read_bytes()).items():
            actual = (entry / name).stat().st_size
            if actual != size:
                return f"{name} has {actual:,} bytes instead of {size:,}"
            if _checksum(entry / name) != checksum:
                return f"{name} is not what was written"
    except (OSError, ValueError) as error:
        return f"it cannot be read ({type(error).__name__})"
    return None


def _checksum(path: Path) -> int:
    """CRC-32 of a file. At 3.7 GB/s it costs less time than it saves: the first epoch finds the file in memory."""
    checksum = 0
    with path.open("rb", buffering=0) as file:
        while block := file.read(BLOCK):
            checksum = zlib.crc32(block, checksum)
    return checksum


def _write_value(folder: Path, adapter: TypeAdapter[T], value: T) -> None:
    (folder / VALUE).write_bytes(adapter.dump_json(value))


def _read_value(folder: Path, adapter: TypeAdapter[T]) -> T:
    return adapter.validate_json((folder / VALUE).read_bytes())


def _map_arrays(folder: Path) -> dict[str, np.ndarray]:
    return {path.stem: np.load(path, mmap_mode="r", allow_pickle=False) for path in folder.glob("*.npy")}
