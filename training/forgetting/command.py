"""`python -m training forget`: take a person's images out of runs, reports and caches, and prove that they are gone."""

import hashlib
import json
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from serving.contract.listing import clean
from serving.contract.objects import Url
from training.data.sources import forgotten
from training.engine import runs
from training.errors import CheckFailed, ConfigError
from training.forgetting.console import places, show_data, show_found, show_weights
from training.forgetting.data_files import DataFiles
from training.forgetting.dependents import mark
from training.forgetting.experiments import find_experiments
from training.forgetting.person import ForgetRequest, Person, recognise
from training.forgetting.retraining import Retraining
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

    Copies of them in the data count, too, as far as the audit detects them. From then on all that reads data for --out
    leaves them out, also where they stay in the data. It ends with another search, which proves that nothing is left;
    the exit code is 1 where something is.
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
    """With --yes, train again without them what has weights that depend on them: runs, folds, studies, searches."""


def forget(config: ForgetConfig, interruption: Interruption | None = None) -> Path:
    """Search, list, take away, search again; return the folder of runs.

    Raises CheckFailed when something is left, ConfigError, DataError, OSError, and all that training raises.
    """
    _check(config)
    out = config.out
    cache = config.cache or out / ".cache"
    group = None if config.group is None else clean(config.group)
    person = recognise(ForgetRequest(group=group, paths=config.path), config.data, cache, out)
    scanned = scan(out, cache, person)
    experiments = find_experiments(scanned.dependents)
    files = DataFiles.of(config.data, person, scanned.dependents)
    if config.delete_images:
        files.check()
    if config.retrain and person.present and isinstance(config.data, Url):
        raise ConfigError(f"--retrain: {config.data} still holds the images, and so would its copy; delete them there")
    show_found(person, scanned, experiments, files)
    if not config.yes:
        print("\nNothing was changed: --yes takes it away.")
        return out
    _take_away(out, scanned, person)
    if config.delete_images:
        files.delete()
    retraining = Retraining(
        out=out,
        cache=cache,
        data=config.data,
        dependents=scanned.dependents,
        experiments=experiments,
        interruption=interruption,
    )
    retrained = retraining.make() if config.retrain else {}
    rescan = scan(out, cache, person, scanned)
    append_line(out / RECORD, json.dumps(_record(config, person, scanned, retrained) | {"absent": not rescan.found}))
    print()
    show_weights(out, scanned, experiments, retraining if config.retrain else None)
    if person.present and not config.delete_images:
        show_data(out, person, files)
    _conclude(rescan)
    return out


def _check(config: ForgetConfig) -> None:
    """Raise ConfigError for options that do not go together."""
    if config.group is None and not config.path:
        raise ConfigError("expected --group or --path: whose images are to be forgotten")
    if config.group is not None and not clean(config.group):
        raise ConfigError("--group: expected a name; images without a group are not of one person")
    for name in ("delete_images", "retrain"):
        if getattr(config, name) and not config.yes:
            raise ConfigError(f"--{name.replace('_', '-')}: expected --yes beside it")
    if not config.out.is_dir():
        raise ConfigError(f"--out {config.out}: expected the folder of runs")


def _take_away(out: Path, scanned: Scan, person: Person) -> None:
    """Erase what was found, and mark the runs whose weights depend on it; from now on no run reads the images.

    Raises ConfigError, DataError, OSError.
    """
    for run in scanned.runs:
        if runs.is_open(run):  # it would write what was taken away again
            raise ConfigError(f"{run}: a process trains in it; wait for its end, or stop it")
    if person.contents:
        forgotten.add(out, person.contents)
    with locked(out / log.LOCK), locked(out / looks.LOCK):
        for trace in scanned.traces:
            if trace.erase is not None:
                trace.erase()
    for entry in scanned.entries:
        entry.erase()
    for run in scanned.dependent:
        mark(run)


def forget_summary(out: Path) -> str:
    """What the command prints at its end."""
    return (
        f"Searched in {out} and its cache alone: not in copies, back-ups, object stores, nor where a model is served."
    )


def _conclude(rescan: Scan) -> None:
    """Print what was searched again. Raises CheckFailed where anything is left."""
    print(f"searched {rescan.searched}, after that")
    if rescan.found:
        raise CheckFailed("\n".join(["absent: no; left:", *places(rescan)]))
    print("absent: yes")


def _record(config: ForgetConfig, person: Person, scanned: Scan, retrained: dict[str, str]) -> dict[str, object]:
    """The line on what was done, without a name of an image."""
    group = person.request.group
    return {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "who": log.account(),
        "group_sha256": None if group is None else hashlib.sha256(group.encode()).hexdigest(),
        "note": NOTE,
        "images": len(person.keys),
        "files": len(scanned.traces),
        "cache_entries": len(scanned.entries),
        "images_deleted": config.delete_images,
        "dependent_runs": [str(run) for run in scanned.dependent],
        "retrained": retrained,
    }
