"""Files and lines that survive a power failure, locks, and memory-mapped arrays that do not stay in this process."""

import hashlib
import mmap
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

import numpy as np
from filelock import FileLock, Timeout

from serving.contract.decode import Digest

LOCK_S = 60.0
"""To wait for another process, which holds a lock for the time of a file's digest at most."""


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock of this file, which one process at a time has. Raises OSError."""
    lock = FileLock(path, timeout=LOCK_S)  # freed by the system when the process ends
    try:
        held = lock.acquire()
    except Timeout as error:
        raise OSError(f"{path}: another process has held it for {LOCK_S:.0f} s") from error
    with held:
        yield


def append_line(path: Path, line: str) -> int:
    """Add a line that outlasts a power failure; returns the length before. One process at a time. Raises OSError."""
    with path.open("a+b") as file:
        length = file.seek(0, os.SEEK_END)
        torn = length > 0 and os.pread(file.fileno(), 1, length - 1) != b"\n"  # a process was killed while it wrote
        try:
            file.write(f"{chr(10) if torn else ''}{line}\n".encode())
            file.flush()
            os.fsync(file.fileno())
        except OSError:
            os.truncate(path, length)  # a part of a line would be no entry
            raise
    return length


def write_atomically(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Replace the content of `path` in one step, also if the power fails: a reader sees all of the old or the new.

    Raises OSError that names `path`.
    """
    partial = path.with_name(f".{path.name}.partial")
    try:
        with partial.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise OSError(error.errno, error.strerror, str(path)) from error  # a write's own error names no file
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    sync(path.parent)


def sync(path: Path) -> None:
    """Make what was written to a file, or renamed in a folder, outlast a power failure."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def kept_unless_empty(folder: Path) -> Iterator[None]:
    """Remove the folder where an error came before any file, so that the next attempt can use its name."""
    try:
        yield
    except BaseException:
        with suppress(OSError):
            folder.rmdir()
        raise


def digest(path: Path) -> Digest:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return Digest(hashlib.file_digest(file, "sha256").hexdigest())


def release(array: np.ndarray) -> None:
    """Take the pages of a mapped array out of this process; the system keeps them in memory while it has room."""
    if isinstance(array.base, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
        array.base.madvise(mmap.MADV_DONTNEED)


def copy_rows(array: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """These rows of an array, of which, where it is mapped, nothing else stays in this process."""
    copies: np.ndarray = array[rows]
    release(array)
    return copies
