"""`python -m training forget`: take a person's images out of runs, reports and caches, and prove that they are gone."""

import hashlib
import json
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from training.data.sources.source import NAMES_SHOWN
from training.engine import runs
from training.errors import CheckFailed, ConfigError
from training.forgetting.data_files import DataFiles
from training.forgetting.dependents import mark
from training.forgetting.person import Person, Wanted, recognise
from training.forgetting.retraining import retrain
from training.forgetting.scan import Scan, scan
from training.options.choices import Data
from training.promotion import log
from training.report import looks
from training.signals import Interruption
from training.storage import append_line, locked

RECORD = "forgotten.jsonl"
NOTE = "group_sha256 is the SHA-256 of the group's name: who knows the name, or can guess it, can find this line."


@dataclass(frozen=True, kw_only=True)
class ForgetConfig:
    """List what runs, reports, logs and caches hold of a person's images, and with --yes take it away.

    Copies of them in the data count, too, as far as the audit detects them. It ends with another search, which proves
    that nothing is left; the exit code is 1 where something is.
    """

    group: str | None = None
    """The person, as the column `group` of a manifest has them."""
    path: tuple[Path, ...] = ()
    """Images, by file or by name as reports show it; also of images that the data does not have any more."""
    data: Data | None = None
    """The data that holds or held them, as for training. None: the digits."""
    out: Path = Path("runs")
    """Folder of the runs, in which everything is searched."""
    cache: Path | None = None
    """As for training. None: .cache in --out."""
    yes: bool = False
    """Take away what is listed. Without it nothing is changed."""
    delete_images: bool = False
    """With --yes, delete the images in --data, too, and their rows in manifests and in files of --corrections."""
    retrain: bool = False
    """With --yes, train again the runs whose weights depend on them; the data must not hold them any more."""


def forget(config: ForgetConfig, interruption: Interruption | None = None) -> Path:
    """Search, list, take away, search again; return the folder of runs.

    Raises CheckFailed when something is left, ConfigError, DataError, OSError, and all that training raises.
    """
    _check(config)
    out = config.out
    cache = config.cache or out / ".cache"
    person = recognise(Wanted(group=config.group, paths=config.path), config.data, cache, out)
    if config.retrain and person.present and not config.delete_images:
        raise ConfigError(f"--retrain: {person.images.name} still holds the images; expected --delete-images, too")
    found = scan(out, cache, person)
    files = DataFiles.of(config.data, person, found.dependents)
    if config.delete_images:
        files.check()
    _list(person, found, files)
    if not config.yes:
        print("\nNothing was changed: --yes takes it away.")
        return out
    _take_away(out, found)
    if config.delete_images:
        files.delete()
    made = _trained_again(config, found, interruption)
    left = scan(out, cache, person, found)
    append_line(out / RECORD, json.dumps(_record(config, person, found, made) | {"absent": not left.found}))
    _conclude(config, person, left, found)
    return out


def _check(config: ForgetConfig) -> None:
    """Raise ConfigError for options that do not go together."""
    if config.group is None and not config.path:
        raise ConfigError("expected --group or --path: whose images are to be forgotten")
    for name in ("delete_images", "retrain"):
        if getattr(config, name) and not config.yes:
            raise ConfigError(f"--{name.replace('_', '-')}: expected --yes beside it")
    if not config.out.is_dir():
        raise ConfigError(f"--out {config.out}: expected the folder of runs")


def _take_away(out: Path, found: Scan) -> None:
    """Erase what was found, and mark the runs whose weights depend on it. Raises ConfigError, OSError."""
    for run in found.runs:
        if runs.is_open(run):  # it would write what was taken away again
            raise ConfigError(f"{run}: a process trains in it; wait for its end, or stop it")
    with locked(out / log.LOCK), locked(out / looks.LOCK):
        for trace in found.traces:
            if trace.erase is not None:
                trace.erase()
    for entry in found.entries:
        entry.erase()
    for run in found.dependent:
        mark(run)


def _trained_again(config: ForgetConfig, found: Scan, interruption: Interruption | None) -> dict[str, str]:
    """The new runs by the old ones, which are directly in --out; those of studies and folds their commands make."""
    if not config.retrain:
        return {}
    own = [one for one in found.dependents if one.depends and one.run.parent == config.out]
    latest = config.out / runs.LATEST
    served = latest.resolve() if latest.is_symlink() else None
    return retrain(own, config.data, served, interruption)


def forget_summary(out: Path) -> str:
    """What the command prints at its end."""
    return (
        f"Searched in {out} and its cache alone: not in copies, back-ups, object stores, nor where a model is served."
    )


def _list(person: Person, found: Scan, files: DataFiles) -> None:
    """Print what is known of the person, where, and what depends on it."""
    named = [f"{key} (a copy of {person.copies[key]})" if key in person.copies else key for key in person.keys]
    print(f"person   {len(person.keys) - len(person.copies):,} images, and {len(person.copies):,} copies of them")
    print("".join(f"         {name}\n" for name in named[:NAMES_SHOWN]), end="")
    if len(named) > NAMES_SHOWN:
        print(f"         and {len(named) - NAMES_SHOWN:,} more")
    for key in sorted(set(person.keys) - {*person.present}):
        print(f"warning: {key} is not in {person.images.name}: it is searched by this name alone, not by its picture")
    print("".join(f"holds    {line}\n" for line in _places(found)), end="")
    for one in found.dependents:
        print(f"{'weights' if one.depends else 'run':8} {one.run}: {one.sentence}")
    for path, what in files.listed():
        print(f"data     {path}: {what}")
    print(f"searched {found.searched}")


def _places(found: Scan) -> list[str]:
    """A line for each file and cache entry."""
    lines = [
        f"{trace.path}: {', '.join(f'{count:,} {name}' for name, count in trace.what.items())}"
        f"{'' if trace.erase else ', in a file of another kind, which only its owner can change'}"
        for trace in found.traces
    ]
    return lines + [f"{entry.folder}: a cache entry with them" for entry in found.entries]


def _conclude(config: ForgetConfig, person: Person, left: Scan, found: Scan) -> None:
    """Print what was searched again, and what still depends on the images. Raises CheckFailed where any is left."""
    print(f"\nsearched {left.searched}, after that")
    latest = config.out / runs.LATEST
    for run in found.dependent:
        if latest.is_symlink() and latest.resolve() == run.resolve():
            print(f"WARNING: {latest} leads to {run}, whose weights depend on them: it is still served")
        print(f"weights  {run} is marked ({runs.FORGOTTEN}); delete it where nobody needs it")
    if person.present and not config.delete_images:
        print(f"data     {person.images.name} still holds {len(person.present):,}; --delete-images deletes them")
    if left.found:
        raise CheckFailed("\n".join(["absent: no; left:", *_places(left)]))
    print("absent: yes")


def _record(config: ForgetConfig, person: Person, found: Scan, made: dict[str, str]) -> dict[str, object]:
    """The line on what was done, without a name of an image."""
    group = None if config.group is None else hashlib.sha256(config.group.encode()).hexdigest()
    return {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "who": log.account(),
        "group_sha256": group,
        "note": NOTE,
        "images": len(person.keys),
        "files": len(found.traces),
        "cache_entries": len(found.entries),
        "images_deleted": config.delete_images,
        "dependent_runs": [str(run) for run in found.dependent],
        "retrained": made,
    }
