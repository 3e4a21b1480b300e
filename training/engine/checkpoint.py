"""Save a run's state so that it is complete or absent, and load nothing but tensors and plain values.

A checkpoint is the zip file that `torch.save` writes, with the SHA-256 of everything before it as the zip's comment:
any reader of checkpoints reads it, and this one notices a byte that changed before anything of it is interpreted.
"""

import hashlib
import io
import os
import pickle
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from training.distributed import ALONE, Group
from training.engine.progress import Progress
from training.engine.train_state import Learner
from training.errors import CheckpointRefused
from training.storage import write_atomically

SAVE_EVERY_S = 600
"""Within an epoch, too, a checkpoint is made at least this often: no more is lost when the process is killed."""
SAVE_SHARE = 0.02
"""Of a run's time, so much may be lost when the process is killed, or be spent on checkpoints within epochs."""
SAVE_FIRST_S = 1
"""What diverges before is as if it had not begun: it leaves no checkpoint, and its name free."""
COMMENT_LENGTH = (64).to_bytes(2, "little")


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

    `identity` are plain values that a run must share with what it goes on from. The first process of `group` writes and
    reads; what it knows holds for all.
    """

    folder: Path
    identity: dict[str, Any]
    group: Group = ALONE

    def save(self, learner: Learner, progress: Progress) -> None:
        """Keep where a run is; as the best, too, when an epoch has just ended that was. All processes wait for it."""
        self.write(learner, progress)
        self.group.meet()

    def write(self, learner: Learner, progress: Progress) -> None:
        """The same, but the others go on meanwhile."""
        if self.group.first:
            state = self.identity | learner.state_dict() | {"progress": progress.state_dict()}
            if progress.step == 0 and progress.history[-1].best:
                save(state, self.folder / "best.pt")  # before `last`: who goes on from `last` counts on its best
            save(state, self.folder / "last.pt", previous=self.folder / "previous.pt")

    def restore(self, learner: Learner) -> Progress:
        """Take up where the run was, or begin. Raises CheckpointRefused."""
        state = self.group.share(self._state)
        if state is None:
            return Progress()
        learner.load_state_dict(state)
        progress = Progress.from_state(state["progress"])
        print(f"resume {self.folder.parent}: epoch {progress.epoch + 1}, after step {progress.step}")
        return progress

    def _state(self) -> dict[str, Any] | None:
        if not (self.folder / "last.pt").exists():
            return None
        device = torch.device("cpu")  # from where it goes to each process's own
        try:
            state = load(self.folder / "last.pt", device)
        except CheckpointRefused as error:
            if not (self.folder / "previous.pt").exists():
                raise
            print(f"warning: {error}; going on from previous.pt")
            state = load(self.folder / "previous.pt", device)
        differing = list(_differing({name: state.get(name) for name in self.identity}, self.identity))
        if differing:
            raise CheckpointRefused(f"{self.folder} holds another run: {', '.join(differing)}")
        return state


class Pace:
    """When a checkpoint is made within an epoch: by what the last one cost, and by how long it all has taken."""

    def __init__(self) -> None:
        self._began = self._kept = time.monotonic()
        self._took = SAVE_FIRST_S * SAVE_SHARE

    def keep(self, save: Callable[[], None]) -> None:
        """Call `save` if it is time to."""
        now = time.monotonic()
        if now - self._kept >= min(SAVE_EVERY_S, max(self._took / SAVE_SHARE, (now - self._began) * SAVE_SHARE)):
            save()
            self._kept = time.monotonic()
            self._took = self._kept - now


def _differing(then: dict[str, Any], now: dict[str, Any], within: str = "") -> Iterator[str]:
    """Each value that is not what it was, by its path, with both."""
    for name in sorted(then.keys() | now.keys()):
        one, other = then.get(name), now.get(name)
        if isinstance(one, dict) and isinstance(other, dict):
            yield from _differing(one, other, f"{within}{name}.")
        elif one != other:
            yield f"{within}{name} was {one}, now it is {other}"
