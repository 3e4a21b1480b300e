"""Save the state of a run so that it is complete or absent, and load only tensors and plain values.

Beside each checkpoint stands its SHA-256, `NAME.pt.sha256`, in the format of `sha256sum`: a byte that changed is
detected before any of the checkpoint is interpreted.
"""

import errno
import hashlib
import io
import os
import pickle
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from serving.contract.card.model_card import ModelCard
from training.distributed import ALONE, Group
from training.engine.progress import RunProgress
from training.engine.runs import CHECKPOINTS
from training.engine.train_state import RunContext, TrainState
from training.errors import CheckpointRefused
from training.models import networks, views
from training.models.normalization import Calibrate
from training.options.config import TrainConfig
from training.storage import write_atomically

SAVE_EVERY_S = 600
"""The longest time between two checkpoints: the most that a killed process loses."""
SAVE_SHARE = 0.02
"""The share of a run's time that a kill may lose, and that checkpoints within epochs may take."""
NO_HARD_LINKS = {errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS}
"""What `os.link` raises on file systems without hard links: SMB shares, FAT, some FUSE file systems."""
SAVE_FIRST_S = 1
"""Time before the first checkpoint within an epoch: a run that diverges earlier leaves none, and its name is free."""


def save(state: dict[str, Any], path: Path, *, previous: Path | None = None) -> None:
    """Write a checkpoint that `torch.load(weights_only=True)` reads, atomically.

    The checkpoint that was at `path` is then at `previous`, if that is given. At every moment a checkpoint at `path`
    or `previous` is complete and has its digest beside it. Raises OSError.
    """
    buffer = io.BytesIO()
    torch.save(state, buffer)
    content = buffer.getbuffer()
    if previous is not None:
        keep(path, previous)
    _replace(path, [hashlib.sha256(content).hexdigest()], lambda: write_atomically(path, lambda f: f.write(content)))


def keep(path: Path, target: Path) -> None:
    """Give the checkpoint at `path`, if there is one, a second name, in place of what is at `target`.

    Files are only ever replaced, so the content of either name stays when the other gets a new one. Raises OSError.
    """
    if path.exists():
        _replace(target, _digests(path), lambda: _link(path, target))


def load(path: Path, device: torch.device) -> dict[str, Any]:
    """Read what `save` wrote; a pickle of anything but tensors and plain values is refused, not executed.

    Raises CheckpointRefused.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError as error:
        raise CheckpointRefused(f"{path}: there is no such checkpoint") from error
    digests = _digests(path)
    if not digests:
        raise CheckpointRefused(
            f"{path}: expected its digest in {_sidecar(path).name} beside it; checkpoints before 0.2.0 have none"
        )
    if hashlib.sha256(content).hexdigest() not in digests:
        raise CheckpointRefused(f"{path}: damaged, or not a checkpoint of this program: its digest does not fit")
    try:
        state = torch.load(io.BytesIO(content), map_location=device, weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise CheckpointRefused(f"{path}: not a checkpoint of tensors and plain values ({error})") from error
    if not isinstance(state, dict):
        raise CheckpointRefused(f"{path}: expected a dictionary, got {type(state).__name__}")
    return state


@dataclass(frozen=True, kw_only=True)
class CheckpointFolder:
    """The checkpoints of a run: `last.pt`, `previous.pt` in case that one is damaged, and `best.pt`.

    `identity` are plain values that must be equal in a checkpoint and in the run that continues from it. The first
    process of `group` writes and reads, and shares what it read.
    """

    folder: Path
    identity: dict[str, Any]
    group: Group = ALONE

    @classmethod
    def of(cls, context: RunContext) -> "CheckpointFolder":
        """The folder of a run; its network, classes, preprocessing and data are its identity."""
        config, dataset = context.config, context.dataset
        settings = networks.settings(config, dataset.preprocessing, context.normalization, dataset.classes)
        identity = {"settings": settings, "data": dataset.digest}
        return cls(folder=config.run / CHECKPOINTS, identity=identity, group=context.group)

    def save(self, state: TrainState, progress: RunProgress, *, best: bool = False) -> None:
        """Write the checkpoint; also as `best.pt`, if an epoch has just ended that is the best. All processes wait."""
        self.write(state, progress, best=best)
        self.group.barrier()

    def write(self, state: TrainState, progress: RunProgress, *, best: bool = False) -> None:
        """The same, but the other processes continue meanwhile."""
        if self.group.first:
            content = self.identity | state.state_dict() | {"progress": progress.state_dict()}
            best_file, last, previous = (self.folder / f"{name}.pt" for name in ("best", "last", "previous"))
            if best:
                save(content, best_file)  # before `last`, which relies on the best one being there
                keep(last, previous)
                keep(best_file, last)
            else:
                save(content, last, previous=previous)

    def restore_weights(self, model: nn.Module) -> None:
        """Load the scored weights of the last checkpoint, if there is one, into the whole network.

        Raises CheckpointRefused.
        """
        content = self.group.broadcast(self._read)
        if content is not None:
            model.load_state_dict(content["model"])

    def restore(self, state: TrainState) -> RunProgress:
        """Load the last checkpoint into `state`, if there is one. Raises CheckpointRefused."""
        content = self.group.broadcast(self._read)
        if content is None:
            return RunProgress()
        try:
            state.load_state_dict(content)
        except ValueError as error:  # of torch's optimizers, for another number of parameters in a group
            raise CheckpointRefused(
                f"{self.folder}: its optimizer is that of another version ({error}); older ones decayed the positions "
                "of transformers. A new run begins anew"
            ) from error
        progress = RunProgress.from_state(content["progress"])
        print(f"resume {self.folder.parent}: epoch {progress.epoch + 1}, after step {progress.step}")
        return progress

    def _read(self) -> dict[str, Any] | None:
        if not (self.folder / "last.pt").exists():
            return None
        device = torch.device("cpu")  # each process then copies it to its own
        try:
            content = load(self.folder / "last.pt", device)
        except CheckpointRefused as error:
            if not (self.folder / "previous.pt").exists():
                raise
            print(f"warning: {error}; continuing from previous.pt")
            content = load(self.folder / "previous.pt", device)
        differing = list(_differing({name: content.get(name) for name in self.identity}, self.identity))
        if differing:
            raise CheckpointRefused(f"{self.folder} holds another run: {', '.join(differing)}")
        return content


def restored(path: Path, config: TrainConfig, card: ModelCard) -> nn.Sequential:
    """The network of a checkpoint with the views and the calibration of its card, on the CPU: what was evaluated.

    Raises CheckpointRefused.
    """
    model = networks.build(config, card.preprocessing, card.normalization, len(card.classes))
    model.load_state_dict(load(path, torch.device("cpu"))["model"])
    views.average(model, card.views)
    return model.append(Calibrate(card.calibration))


class CheckpointInterval:
    """The time between two checkpoints within an epoch: by the cost of the last one and the age of the process."""

    def __init__(self, save: Callable[[], None]) -> None:
        self._save = save
        self._began = self._saved = time.monotonic()
        self._cost = SAVE_FIRST_S * SAVE_SHARE

    def save_if_due(self) -> None:
        """Save if the interval has passed."""
        now = time.monotonic()
        if now - self._saved >= min(SAVE_EVERY_S, max(self._cost / SAVE_SHARE, (now - self._began) * SAVE_SHARE)):
            self._save()
            self._saved = time.monotonic()
            self._cost = self._saved - now


def _sidecar(path: Path) -> Path:
    return path.with_name(f"{path.name}.sha256")


def _digests(path: Path) -> list[str]:
    """The digests in the sidecar; while the checkpoint is replaced, those of the new and of the old one."""
    try:
        lines = _sidecar(path).read_text(encoding="utf-8", errors="replace").splitlines()
    except FileNotFoundError:
        return []
    return [line.partition(" ")[0] for line in lines]


def _write_digests(path: Path, digests: list[str]) -> None:
    content = "".join(f"{digest}  {path.name}\n" for digest in digests).encode()
    write_atomically(_sidecar(path), lambda file: file.write(content))


def _replace(path: Path, digests: list[str], put: Callable[[], object]) -> None:
    """Replace the file at `path` by `put`, with a sidecar that fits the file before and after, at every moment."""
    earlier = _digests(path) if path.exists() else []
    _write_digests(path, [*digests, *earlier])
    put()
    if earlier:
        _write_digests(path, digests)


def _link(path: Path, target: Path) -> None:
    """Give the file a second name, in place of the file that has it; where there are no hard links, copy the file."""
    link = target.with_name(f".{target.name}.link")
    link.unlink(missing_ok=True)
    try:
        os.link(path, link)
    except OSError as error:
        if error.errno not in NO_HARD_LINKS:
            raise
        with path.open("rb") as file:
            write_atomically(target, lambda copy: shutil.copyfileobj(file, copy))
    else:
        link.replace(target)


def _differing(then: dict[str, Any], now: dict[str, Any], within: str = "") -> Iterator[str]:
    """Each value that changed, by its path, with both values."""
    for name in sorted(then.keys() | now.keys()):
        one, other = then.get(name), now.get(name)
        if isinstance(one, dict) and isinstance(other, dict):
            yield from _differing(one, other, f"{within}{name}.")
        elif one != other:
            yield f"{within}{name} was {one}, now it is {other}"
