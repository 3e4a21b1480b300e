"""The folders of runs: one process at a time in each, `latest` beside them, and the one to resume."""

import os
import socket
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import fields, replace
from pathlib import Path
from shlex import quote

from filelock import FileLock, Timeout

from serving.contract.files.names import MODEL
from serving.contract.objects import Url
from training.engine.history import HISTORY
from training.errors import CheckpointRefused, ConfigError
from training.metrics import costs
from training.options.config import TrainConfig
from training.options.config_file import from_yaml
from training.storage import kept_unless_empty, sync

AUTO = "auto"
AUDIT = "audit.json"
CONFIG = "config.yaml"
CHECKPOINTS = "checkpoints"
LAST = "checkpoints/last.pt"
BEST = "checkpoints/best.pt"
"""Checkpoint of the epoch that is evaluated and exported."""
PREDICTIONS = "predictions.csv"
"""Table of the predictions; an evaluation and folds write one, too."""
PREDICTIONS_VAL = "predictions-val.csv"
"""The same of the validation split."""
REPORT = "report"
REPORT_FACTS = "report/report.json"
LOCK = ".lock"
MAY_CHANGE = {"cache", "device", "workers", "worker_timeout", "resume", "promote"}
"""Options that do not change the result of a run."""
OPEN = {"model": "auto", "augment_on": "auto"}
"""Values that leave to the run what it has decided."""
_NAMES = [field.name for field in fields(TrainConfig)]
LATEST = "latest"
STUDY = "study.yaml"
"""File in the folder above the runs of a study, its specification."""
JOURNAL = "journal.log"
"""The same of a search: Optuna's record of its trials."""
PENDING_PROMOTION = ".unpublished"
"""File in a run whose report is written and for which it is not settled whether `latest` moves to it."""
FORGOTTEN = "forgotten.json"
HAS_LEARNED = "its weights depend on images that were forgotten"
"""Of a run with this file, which `forget` leaves in it."""
"""File in a run whose weights depend on images that were forgotten: it is not promoted again."""
CURVES = "tensorboard/events.out.tfevents.*"
BEGUN = (
    *(LOCK, CONFIG, f".{CONFIG}.partial", "augment.*", "costs.csv", AUDIT, HISTORY, f".{HISTORY}.partial"),
    *("tensorboard", CURVES, CHECKPOINTS, "checkpoints/.last.pt.partial"),
    *("checkpoints/last.pt.sha256", "checkpoints/.last.pt.sha256.partial"),
)
"""All files that a run that ended before its first checkpoint may have left."""


@contextmanager
def opened(run: Path, *, resume: bool) -> Iterator[None]:
    """Make the folder of a new run, or open the folder of a run to resume, and keep other processes out of it.

    A new run takes over the folder of a run of its name that ended before its first checkpoint. Any other folder that
    is not empty is refused. This comes first in a run, so that a folder that cannot be written costs no time. Raises
    ConfigError, OSError.
    """
    refuse_latest(run)
    is_new = not (resume and (run / CONFIG).is_file())
    if is_new:
        refuse_taken(run)
    run.mkdir(parents=True, exist_ok=True)
    (run / CHECKPOINTS).mkdir(exist_ok=True)
    lock = FileLock(run / LOCK, timeout=0)  # freed by the system when the process ends, also when it is killed
    try:
        held = lock.acquire()
    except Timeout as error:
        holder = (run / LOCK).read_text(encoding="utf-8").strip()
        raise ConfigError(f"{run}: another process trains in it ({holder})") from error
    with held:
        (run / LOCK).write_text(f"process {os.getpid()} on {socket.gethostname()}\n", encoding="utf-8")
        if is_new:
            refuse_taken(run)  # by a run that held the lock until now
            for leftover in (run / CONFIG, run / HISTORY, *run.glob(CURVES)):  # the rest is written over
                leftover.unlink(missing_ok=True)
        yield


def model_file(path: Path) -> Path:
    """The model file of a run's folder; another path as it is."""
    return path / MODEL if path.is_dir() else path


@contextmanager
def results_folder(out: Path | None, default: Path) -> Iterator[Path]:
    """Make the folder of the results before any image is read: one that cannot be written to then costs no time.

    It is removed again where nothing came into it, so that the next attempt can use the name. Raises ConfigError for an
    `out` that exists, OSError.
    """
    folder = out or default
    try:
        folder.mkdir(parents=True)
    except FileExistsError as error:
        raise ConfigError(f"--out {folder}: expected a folder that does not exist yet") from error
    except OSError as error:
        raise OSError(f"{folder}: cannot be made ({error.strerror}); --out names another place") from error
    with kept_unless_empty(folder):
        yield folder


def is_open(run: Path) -> bool:
    """Whether a process trains in this folder. Raises OSError."""
    if not (run / LOCK).exists():
        return False
    try:
        with FileLock(run / LOCK, timeout=0):
            return False
    except Timeout:
        return True


def has_checkpoint(run: Path) -> bool:
    """Whether there is a checkpoint to resume from."""
    return (run / LAST).exists()


def is_finished(run: Path) -> bool:
    """Whether the run has written all its results, the report last, and its promotion is settled."""
    return (run / REPORT).is_dir() and not (run / PENDING_PROMOTION).exists()


def to_resume(resume: str, out: Path, name: str | None) -> Path | None:
    """The folder that `--resume` names, or None if a new run shall begin.

    `auto` is the run called `name`, or without a name the newest in `out` that is not finished, if there is one. Raises
    ConfigError for a folder that is no run.
    """
    if resume != AUTO:
        run = Path(resume)
        if not (run / CONFIG).is_file():
            raise ConfigError(f"--resume {resume}: expected a run's folder, with its {CONFIG}, or {AUTO}")
        return run.resolve() if run.name in ("", "..") or run.is_symlink() else run  # else it has not the run's name
    if name is not None:
        return out / name if (out / name / CONFIG).is_file() else None
    run_folders = [path.parent for path in out.glob(f"*/{CONFIG}") if not path.parent.is_symlink()]
    unfinished = [run for run in run_folders if not is_finished(run)]
    return max(unfinished, key=lambda run: (run / CONFIG).stat().st_mtime_ns, default=None)


def load_config(run: Path) -> TrainConfig:
    """The options in the config.yaml of a run; files that they name are the run's copies. Raises ConfigError.

    Where the run is, its folder says: it may have moved.
    """
    run_config = from_yaml(run / CONFIG, of_run=True)
    return replace(
        run_config,
        out=run.parent,
        name=run.name,
        augment=_copy(run, run_config.augment) if isinstance(run_config.augment, Path) else run_config.augment,
        costs=None if run_config.costs is None else _copy(run, run_config.costs),
    )


def _copy(run: Path, file: Path) -> Path:
    """The copy of a file in the folder of a run; the file where there is none yet."""
    copy = run / file.name
    return copy if copy.is_file() else file


def resumed_config(
    run: Path, requested: TrainConfig, parse: Callable[[TrainConfig], TrainConfig], *, from_file: bool
) -> TrainConfig:
    """The options with which a run resumes: its own, and of MAY_CHANGE those that are requested.

    `requested` are the options of the command line as for a new run; with `from_file`, over those of --config's file.
    `parse` reads the command line over other defaults: over the run's options, what it does not name is as the run has
    it. In a file any default may stand for what the run has decided since, such as a batch size. So only its other
    values count, and not the place of the run, which --resume names.

    Raises CheckpointRefused for another value, or another content of a file, that would change the result; ConfigError.
    """
    run_config = replace(load_config(run), resume=requested.resume)
    defaults = run_config
    if from_file:
        requested = _with_decisions(requested, run_config)
        names = [name for name in _NAMES if name not in ("out", "name")]
        given = [name for name in names if getattr(requested, name) != getattr(TrainConfig, name)]
        _refuse_changes(run_config, requested, given)
        defaults = replace(run_config, **{name: getattr(requested, name) for name in given})
    resumed = _with_decisions(parse(defaults), run_config)
    _refuse_changes(run_config, resumed, _NAMES)
    return resumed


def _with_decisions(requested: TrainConfig, run_config: TrainConfig) -> TrainConfig:
    """The requested options, where they leave open what the run has decided, or name a file that it has copied.

    Raises CheckpointRefused where the file has another content than the copy, ConfigError where it cannot be read.
    """
    decided = {
        name: getattr(run_config, name) for name, open_value in OPEN.items() if getattr(requested, name) == open_value
    }
    if run_config.own_network and requested.weights == "none":
        decided["weights"] = run_config.weights
    for name, same in (("augment", same_bytes), ("costs", costs.same)):
        copy, file = getattr(run_config, name), getattr(requested, name)
        if isinstance(copy, Path) and isinstance(file, Path) and file != copy:
            if not same(file, copy):
                raise CheckpointRefused(f"--{name} {file}: its content is not that of {copy}, with which the run began")
            decided[name] = copy
    return replace(requested, **decided)


def same_bytes(one: Path, other: Path) -> bool:
    """Whether a file of --augment has the content of another. Raises ConfigError."""
    try:
        return one.read_bytes() == other.read_bytes()
    except OSError as error:
        raise ConfigError(f"--augment {one}: cannot be compared with {other} ({error.strerror})") from error


def _refuse_changes(run_config: TrainConfig, requested: TrainConfig, names: Iterable[str]) -> None:
    """Raise CheckpointRefused, with both values, where options of these names differ that may not change."""
    differing = [
        f"--{name.replace('_', '-')} was {getattr(run_config, name)}, now it is {getattr(requested, name)}"
        for name in names
        if name not in MAY_CHANGE and _as_written(getattr(run_config, name)) != _as_written(getattr(requested, name))
    ]
    if differing:
        run = run_config.out / (run_config.name or "")
        raise CheckpointRefused(f"{run} cannot continue with other options: {', '.join(differing)}")


def _as_written(value: object) -> object:
    """The value as config.yaml has it: a URL without password or signature."""
    return str(value) if isinstance(value, Url) else value


def point_latest(out: Path, target: str) -> None:
    """Point `latest` in `out` to `target`, in one step: a reader sees the old model or the new one. Raises OSError."""
    link = out / f".{LATEST}.{os.getpid()}"
    try:
        link.unlink(missing_ok=True)
        link.symlink_to(target)
        link.replace(out / LATEST)
    except OSError as error:
        link.unlink(missing_ok=True)
        raise OSError(
            error.errno, f"it could not be moved to {target} ({error.strerror})", str(out / LATEST)
        ) from error
    sync(out)


def refuse_latest(run: Path) -> None:
    """Raise ConfigError where `latest` could not point to the run at its end."""
    latest = run.parent / LATEST
    if run.name == LATEST:
        raise ConfigError(f"--name {LATEST}: expected another name; `{latest}` is the link to the newest run")
    if latest.exists() and not latest.is_symlink():
        raise ConfigError(
            f"--out {run.parent}: {latest} is no link, so it cannot point to the run; rename it, or give another --out"
        )


def refuse_taken(run: Path) -> None:
    """Raise ConfigError when a new run would overwrite a file that no unfinished run has left."""
    if has_checkpoint(run):
        raise ConfigError(
            f"--name {run.name}: there is a run of that name in {run.parent}; --resume {quote(str(run))} continues it"
        )
    leftovers = {path for name in BEGUN for path in run.glob(name)} if (run / LOCK).exists() else set()
    others = [run] if run.is_file() else sorted(set(run.rglob("*")) - leftovers)
    if others:
        raise ConfigError(f"--name {run.name}: {others[0]} is there and would be written over; give another name")
