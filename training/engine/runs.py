"""The folders of runs: one process at a time in each, `latest` beside them, and the one to go on with."""

import fcntl
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields, replace
from pathlib import Path

from training.config import TrainConfig, from_yaml
from training.engine.history import HISTORY
from training.errors import CheckpointRefused, ConfigError

AUTO = "auto"
CONFIG = "config.yaml"
LOCK = ".lock"
MAY_CHANGE = {"cache", "device", "workers", "worker_timeout", "resume"}
"""Options of a run that do not decide what comes out of it."""
CURVES = "tensorboard/events.out.tfevents.*"
BEGUN = (
    *(LOCK, CONFIG, f".{CONFIG}.partial", "augment.*", "audit.json", HISTORY, f".{HISTORY}.partial"),
    *("tensorboard", CURVES, "checkpoints", "checkpoints/.last.pt.partial"),
)
"""All that a run may have left that ended before its first checkpoint."""


@contextmanager
def opened(run: Path, *, go_on: bool) -> Iterator[None]:
    """Make the folder of a new run, or take up that of one to go on with, and keep other processes out of it.

    A run that ended before its first checkpoint is no hindrance to a new one of its name, which takes its folder over.
    Any other folder that is not empty is refused. Before anything else, so that a folder that cannot be written to
    costs no time. Raises ConfigError, OSError.
    """
    is_new = not (go_on and (run / CONFIG).is_file())
    if is_new:
        _refuse_taken(run)
    run.mkdir(parents=True, exist_ok=True)
    (run / "checkpoints").mkdir(exist_ok=True)
    with (run / LOCK).open("a+") as lock:
        try:
            # The kernel lets go of it when the process ends, however; unlike flock's, no forked worker keeps it.
            fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError) as error:
            lock.seek(0)
            raise ConfigError(f"{run}: another process trains in it ({lock.read().strip()})") from error
        lock.truncate(0)
        lock.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        lock.flush()
        if is_new:
            _refuse_taken(run)  # by a run that had the folder until now
            for left in (run / CONFIG, run / HISTORY, *run.glob(CURVES)):  # all else is written over
                left.unlink(missing_ok=True)
        yield


def has_checkpoint(run: Path) -> bool:
    """Whether there is anything to go on from."""
    return (run / "checkpoints" / "last.pt").exists()


def is_finished(run: Path) -> bool:
    """Whether everything is there that a run leaves; the report comes last."""
    return (run / "report").is_dir()


def to_resume(resume: str, out: Path, name: str | None) -> Path | None:
    """The folder that `--resume` means, if there is one to go on with.

    `auto` is the run called `name`, or without a name the newest in `out` that is not finished; None where there is
    none, and a new one shall begin. Raises ConfigError for a folder that is no run.
    """
    if resume != AUTO:
        if not (Path(resume) / CONFIG).is_file():
            raise ConfigError(f"--resume {resume}: expected a run's folder, with its {CONFIG}, or {AUTO}")
        return Path(resume)
    if name is not None:
        return out / name if (out / name / CONFIG).is_file() else None
    begun = [path.parent for path in out.glob(f"*/{CONFIG}") if not path.parent.is_symlink()]
    unfinished = [run for run in begun if not is_finished(run)]
    return max(unfinished, key=lambda run: (run / CONFIG).stat().st_mtime_ns, default=None)


def begun(run: Path) -> TrainConfig:
    """What a run was begun with, every choice made. Raises ConfigError."""
    return replace(from_yaml(run / CONFIG), out=run.parent, name=run.name)


def refuse_changes(own: TrainConfig, asked: TrainConfig) -> None:
    """Raise CheckpointRefused, with both values, where the options of a run to go on with are not its own."""
    differing = [
        f"--{field.name.replace('_', '-')} was {getattr(own, field.name)}, now it is {getattr(asked, field.name)}"
        for field in fields(TrainConfig)
        if field.name not in MAY_CHANGE and getattr(own, field.name) != getattr(asked, field.name)
    ]
    if differing:
        raise CheckpointRefused(f"{own.out / (own.name or '')} cannot go on with other options: {', '.join(differing)}")


def publish(run: Path) -> None:
    """Point `latest` beside the run to it, in one step: whoever opens it sees the old model or the new one."""
    link = run.parent / f".latest.{os.getpid()}"
    link.unlink(missing_ok=True)
    link.symlink_to(run.name)
    link.replace(run.parent / "latest")


def _refuse_taken(run: Path) -> None:
    """Raise ConfigError where a new run would take anything from anybody."""
    if has_checkpoint(run):
        raise ConfigError(
            f"--name {run.name}: there is a run of that name in {run.parent}; --resume {run} goes on with it"
        )
    begun = {path for name in BEGUN for path in run.glob(name)} if (run / LOCK).exists() else set()
    others = [run] if run.is_file() else sorted(set(run.rglob("*")) - begun)
    if others:
        raise ConfigError(f"--name {run.name}: {others[0]} is there and would be written over; give another name")
