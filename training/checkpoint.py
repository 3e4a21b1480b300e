"""Save a run's state so that it is complete or absent, and load nothing but tensors and plain values."""

import hashlib
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import torch

from serving.contract import Digest


class CheckpointRefused(RuntimeError):
    """A file that holds no checkpoint, or one that does not fit; the message says which and why."""


def save(state: dict[str, Any], path: Path) -> None:
    """Write a checkpoint that `torch.load(weights_only=True)` reads, atomically."""
    write_atomically(path, lambda file: torch.save(state, file))


def load(path: Path, device: torch.device) -> dict[str, Any]:
    """Read what `save` wrote; a pickle that holds anything but tensors and plain values is not executed but refused.

    Raises CheckpointRefused.
    """
    try:
        state = torch.load(path, map_location=device, weights_only=True)
    except FileNotFoundError as error:
        raise CheckpointRefused(f"{path}: there is no such checkpoint") from error
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise CheckpointRefused(f"{path}: not a checkpoint of tensors and plain values ({error})") from error
    if not isinstance(state, dict):
        raise CheckpointRefused(f"{path}: expected a dictionary, got {type(state).__name__}")
    return state


def digest(path: Path) -> Digest:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return Digest(hashlib.file_digest(file, "sha256").hexdigest())


def write_atomically(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Whoever opens `path` sees the old content or all of the new one, even if the power fails in between."""
    partial = path.with_name(f".{path.name}.partial")
    try:
        with partial.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
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
