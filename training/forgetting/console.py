"""What `forget` prints: what is known of the person, where, what depends on it, and what stays."""

from pathlib import Path
from shlex import quote

from serving.contract.objects import Url
from training.data.sources import forgotten
from training.data.sources.source import NAMES_SHOWN
from training.engine import runs
from training.forgetting.data_files import DataFiles
from training.forgetting.experiments import Experiment
from training.forgetting.person import Person
from training.forgetting.retraining import Retraining
from training.forgetting.scan import Scan


def show_found(person: Person, scanned: Scan, experiments: list[Experiment], files: DataFiles) -> None:
    """Print what is known of the person, where, and what depends on it."""
    named = [f"{key} (a copy of {person.copies[key]})" if key in person.copies else key for key in person.keys]
    print(f"person   {len(person.keys) - len(person.copies):,} images, and {len(person.copies):,} copies of them")
    print("".join(f"         {name}\n" for name in named[:NAMES_SHOWN]), end="")
    if len(named) > NAMES_SHOWN:
        print(f"         and {len(named) - NAMES_SHOWN:,} more")
    for key in sorted(set(person.keys) - {*person.present}):
        print(
            f"warning: {key} is not in {person.all_images.name}: it is searched by this name alone, not by its picture"
        )
    print("".join(f"holds    {line}\n" for line in places(scanned)), end="")
    together = {one.run for each in experiments for one in each.dependents}
    for one in scanned.dependents:
        if one.run not in together:
            print(f"{'weights' if one.depends else 'run':8} {one.run}: {one.sentence}")
    print("".join(f"{one.kind:8} {one.folder}: {one.sentence}\n" for one in experiments), end="")
    for path, what in files.listed():
        print(f"data     {path}: {what}")
    print(f"searched {scanned.searched}")


def places(scanned: Scan) -> list[str]:
    """A line for each file and cache entry with something of the person."""
    lines = [
        f"{trace.path}: {', '.join(f'{count:,} {name}' for name, count in trace.what.items())}"
        f"{'' if trace.erase else ', in a file of another kind, which only its owner can change'}"
        for trace in scanned.traces
    ]
    return lines + [f"{entry.folder}: a cache entry with them" for entry in scanned.entries]


def show_weights(out: Path, scanned: Scan, experiments: list[Experiment], retraining: Retraining | None) -> None:
    """Print which weights still depend on the images, and what has taken their place."""
    latest = out / runs.LATEST
    served = latest.resolve() if latest.is_symlink() else None
    for run in scanned.dependent:
        if served == run.resolve():
            new = retraining.made.get(run) if retraining else None
            then = f'; `promote {quote(str(new))} --force --reason "..."` moves it' if new else ""
            print(f"WARNING: {latest} leads to {run}, whose weights depend on them: it is still served{then}")
    together = {one.run for each in experiments for one in each.dependents}
    for run in scanned.dependent:
        if run not in together:
            marked = f"is marked ({runs.FORGOTTEN}); delete it where nobody needs it"
            print(f"weights  {run} {marked}{_instead(run, retraining)}")
    for one in experiments:
        marked = f"{len(one.dependents)} of its {one.total} runs marked; delete it where nobody needs it"
        print(f"{one.kind:8} {one.folder} has {marked}{_instead(one.folder, retraining)}")
    if scanned.dependent and retraining is None:
        print("again    with --retrain, the same command trains them again, without the images")


def _instead(folder: Path, retraining: Retraining | None) -> str:
    if retraining is None:
        return ""
    new = retraining.made.get(folder)
    return f"; in its place is {new}" if new else f"; not made again: {retraining.not_made[folder]}"


def show_data(out: Path, person: Person, files: DataFiles) -> None:
    """Print what becomes of the images that stay in the data."""
    where = "--delete-images deletes them" if files.are_files else "who keeps it deletes them there"
    print(f"data     {person.all_images.name} still holds {len(person.present):,}; {where}")
    print(f"         all that reads it for {out} leaves them out, by {out / forgotten.LIST}")
    if isinstance(files.data, Url):
        print("         its copy in the cache will hold them again with the next run")
