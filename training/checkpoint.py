"""Save a run's state so that it is complete or absent, and load nothing but tensors and plain values.

A checkpoint is the zip file that `torch.save` writes, with the SHA-256 of everything before it as the zip's comment:
any reader of checkpoints reads it, and this one notices a byte that changed before anything of it is interpreted.
"""

import hashlib
import io
import os
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch

from serving.contract import Digest
from training.learner import Learner
from training.progress import Progress

COMMENT_LENGTH = (64).to_bytes(2, "little")


class CheckpointRefused(RuntimeError):
    """A file that holds no checkpoint, or one that does not fit; the message says which and why."""


def save(state: dict[str, Any], path: Path, *, previous: Path | None = None) -> None:
    """Write a checkpoint that `torch.load(weights_only=True)` reads, atomically.

    What was at `path` before is then at `previous`, if that is given; at no moment is there none at `path`.
    """
    buffer = io.BytesIO()
    torch.save(state, buffer)
    content = buffer.getbuffer()
    content[-len(COMMENT_LENGTH) :] = COMMENT_LENGTH  # the zip's last two bytes
    comment = hashlib.sha256(content).hexdigest().encode()
    if previous is not None and path.exists():
        link = previous.with_name(f".{previous.name}.link")
        link.unlink(missing_ok=True)
        os.link(path, link)
        link.replace(previous)
    write_atomically(path, lambda file: file.writelines((content, comment)))


def load(path: Path, device: torch.device) -> dict[str, Any]:
    """Read what `save` wrote; a pickle that holds anything but tensors and plain values is not executed but refused.

    Raises CheckpointRefused.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError as error:
        raise CheckpointRefused(f"{path}: there is no such checkpoint") from error
    length = hashlib.sha256().digest_size * 2
    if hashlib.sha256(content[:-length]).hexdigest().encode() != content[-length:]:
        raise CheckpointRefused(f"{path}: damaged, or not a checkpoint of this program: its digest does not fit")
    try:
        state = torch.load(io.BytesIO(content), map_location=device, weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise CheckpointRefused(f"{path}: not a checkpoint of tensors and plain values ({error})") from error
    if not isinstance(state, dict):
        raise CheckpointRefused(f"{path}: expected a dictionary, got {type(state).__name__}")
    return state


@dataclass(frozen=True, kw_only=True)
class Saved:
    """The checkpoints of a run: `last.pt`, `previous.pt` in case that one is damaged, and `best.pt`.

    `identity` are plain values that a run must share with what it goes on from.
    """

    folder: Path
    identity: dict[str, Any]

    def save(self, learner: Learner, progress: Progress) -> None:
        """Keep where a run is; as the best, too, when an epoch has just ended that was."""
        state = self.identity | learner.state_dict() | {"progress": progress.state_dict(), "random": _random_states()}
        if progress.step == 0 and progress.history[-1].best:
            save(state, self.folder / "best.pt")  # before `last`: who goes on from `last` counts on its best
        save(state, self.folder / "last.pt", previous=self.folder / "previous.pt")

    def restore(self, learner: Learner, device: torch.device) -> Progress:
        """Take up where the run was, or begin. Raises CheckpointRefused."""
        if not (self.folder / "last.pt").exists():
            return Progress()
        try:
            state = load(self.folder / "last.pt", device)
        except CheckpointRefused as error:
            if not (self.folder / "previous.pt").exists():
                raise
            print(f"warning: {error}; going on from previous.pt")
            state = load(self.folder / "previous.pt", device)
        for name, ours in self.identity.items():
            if state.get(name) != ours:
                raise CheckpointRefused(
                    f"{self.folder}: {name} differs from what the run began with: {state.get(name)} then, {ours} now"
                )
        learner.load_state_dict(state)
        torch.set_rng_state(state["random"]["cpu"].cpu())
        if device.type == "cuda":
            torch.cuda.set_rng_state(state["random"]["cuda"].cpu(), device)
        progress = Progress.from_state(state["progress"])
        print(f"resume {self.folder.parent}: epoch {progress.epoch + 1}, after step {progress.step}")
        return progress


def digest(path: Path) -> Digest:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return Digest(hashlib.file_digest(file, "sha256").hexdigest())


def _random_states() -> dict[str, torch.Tensor]:
    """Of torch's generators, from which dropout draws; every other draw is made from a key."""
    states = {"cpu": torch.get_rng_state()}
    return states | {"cuda": torch.cuda.get_rng_state()} if torch.cuda.is_initialized() else states  # type: ignore[no-untyped-call]


def write_atomically(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Whoever opens `path` sees the old content or all of the new one, even if the power fails in between.

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
