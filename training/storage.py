"""Files that survive a power failure, and memory-mapped arrays that do not stay in this process."""

import hashlib
import mmap
import os
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import numpy as np

from serving.contract.decode import Digest


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


def digest(path: Path) -> Digest:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return Digest(hashlib.file_digest(file, "sha256").hexdigest())


def release(array: np.ndarray) -> None:
    """Take the pages of a mapped array out of this process; the system keeps them in memory while it has room."""
    if isinstance(array.base, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
        array.base.madvise(mmap.MADV_DONTNEED)


def copied(array: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """These rows of an array, of which, where it is mapped, nothing else stays in this process."""
    copies: np.ndarray = array[rows]
    release(array)
    return copies
