"""Train again, without the images that were forgotten, the runs whose weights depend on them."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from serving.contract.objects import Location
from training.engine import runs
from training.forgetting.dependents import Dependent
from training.forgetting.experiments import Experiment
from training.signals import Interruption
from training.train import train

AGAIN = "-again"
_AGAIN = re.compile(rf"(.+?){AGAIN}(?:-\d+)?")


@dataclass(kw_only=True)
class Retraining:
    """The runs directly in a folder of runs, and the experiments below it, that are to be made again.

    Where `a-again` is to be made again and `a`, too, one new run takes the place of both. What was stopped continues,
    and what is made already is not made twice.
    """

    out: Path
    cache: Path
    data: Location | None
    dependents: Sequence[Dependent]
    experiments: Sequence[Experiment]
    interruption: Interruption | None
    made: dict[Path, Path] = field(default_factory=dict)
    """New folders by old ones."""
    not_made: dict[Path, str] = field(default_factory=dict)
    """Runs and experiments that are not made again, and why."""

    def __post_init__(self) -> None:
        """Find what was made for the place of what."""
        latest = self.out / runs.LATEST
        self._latest = latest.resolve() if latest.is_symlink() else None
        self._runs = {one.run: one for one in self.dependents if one.depends and one.run.parent == self.out}
        self._experiments = {one.folder: one for one in self.experiments}

    def make(self) -> dict[str, str]:
        """Make all of them, and return the names of the new folders by those of the old ones.

        What takes the place of the run that `latest` led to is promoted if the rule of promotion holds, or always, as
        that was declared; the others are not. Raises all that training raises.
        """
        for folder in (*self._runs, *self._experiments):
            self._new(folder)
        of_experiments = {run for one in self.experiments for run in (each.run for each in one.dependents)}
        for one in self.dependents:
            if one.depends and one.run not in self._runs and one.run not in of_experiments:
                self.not_made[one.run] = "another command has made it, and makes it again"
        return {old.name: new.name for old, new in self.made.items()}

    def _new(self, folder: Path) -> Path | None:
        """The new folder in the place of a run or an experiment, made where it is not; None where it cannot be."""
        if folder in self.made or folder in self.not_made:
            return self.made.get(folder)
        origin = self._origin(folder)
        if origin != folder:
            new = self._new(origin)
        elif folder in self._experiments:
            new = self._experiment(self._experiments[folder])
        else:
            new = self._run(self._runs[folder])
        if new is None:
            self.not_made.setdefault(folder, f"it follows {origin}")
        else:
            self.made[folder] = new
        return new

    def _origin(self, folder: Path) -> Path:
        """What a folder was made again for, if that is to be made again as well; else itself."""
        base = self._base(folder)
        match = _AGAIN.fullmatch(base)
        before = folder.with_name(match[1] + folder.name.removeprefix(base)) if match else folder
        return self._origin(before) if match and before in (*self._runs, *self._experiments) else folder

    def _base(self, folder: Path) -> str:
        """The name that was asked for: folds by a column add the column."""
        return self._experiments[folder].base.name if folder in self._experiments else folder.name

    def _run(self, one: Dependent) -> Path | None:
        options = replace(runs.load_config(one.run), resume=None)
        if one.splits:  # else its weights depend on them by those that it started from, and its data is other data
            options = replace(options, data=self.data)
        if one.started_from is not None:
            if (start := self._started_from(one.started_from)) is None:
                self.not_made[one.run] = f"it started from {one.started_from}, which is not made again"
                return None
            options = replace(options, init_from=start)
        if options.from_folds is not None:
            if (parts := self._folds(options.from_folds)) is None:
                self.not_made[one.run] = f"its scores are those of {options.from_folds}, which are not made again"
                return None
            options = replace(options, from_folds=parts, best_epoch=None)
        follows = self._latest is not None and self._latest in {run.resolve() for run in self._in_place_of(one.run)}
        if follows:
            options = replace(options, promote="always" if options.promote == "always" else "better")
        else:
            options = replace(options, promote="never", floor=())  # a floor is for what may be promoted
        place, is_finished = self._place(one.run)
        if is_finished:
            return place
        print(f"again  {one.run}", flush=True)
        resume = str(place) if place.exists() else None
        return train(replace(options, name=place.name, resume=resume), self.interruption)

    def _in_place_of(self, run: Path) -> Iterator[Path]:
        """All runs in whose place the new one for this run comes."""
        return (each for each in self._runs if self._origin(each) == run)

    def _started_from(self, run: Path) -> Path | None:
        """The run in the place of another, which may be one of an experiment."""
        if run in self._runs:
            return self._new(run)
        folder = run.parent.parent
        experiment = self._new(folder) if folder in self._experiments else None
        start = experiment / "runs" / run.name if experiment is not None else None
        return start if start is not None and start.is_dir() else None

    def _folds(self, folder: Path) -> Path | None:
        experiment = next((each for each in self._experiments if each.resolve() == folder.resolve()), None)
        return folder if experiment is None else self._new(experiment)

    def _experiment(self, one: Experiment) -> Path | None:
        if any(each.started_from is not None for each in one.dependents):
            self.not_made[one.folder] = "its runs started from runs that depend on them; it is to be declared anew"
            return None
        print(f"again  {one.folder}", flush=True)
        name = next(name for name in _names(one.base.name) if not self._depends(one.base.with_name(name)))
        return one.make_again(name, self.data, self.cache, self.out)

    def _depends(self, base: Path) -> bool:
        """Whether an experiment of this name depends on the images, too."""
        return any(each.base == base for each in self.experiments)

    def _place(self, run: Path) -> tuple[Path, bool]:
        """The folder for the new run, and whether it is there and finished."""
        for name in _names(run.name):
            place = run.with_name(name)
            if not place.exists() or place not in self._runs:
                break
        return place, place.exists() and runs.is_finished(place)


def _names(name: str) -> Iterator[str]:
    """Names for what is made again in the place of this."""
    yield f"{name}{AGAIN}"
    number = 2
    while True:
        yield f"{name}{AGAIN}-{number}"
        number += 1
