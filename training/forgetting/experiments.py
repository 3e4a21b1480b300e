"""Studies, searches and folds: commands that train several runs, which are made again as a whole."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import yaml

from serving.contract.objects import Location
from training.data import left_out
from training.engine import runs
from training.folds.command import folds
from training.folds.config import FoldsConfig
from training.folds.gaps import HOW, OPTIONS
from training.folds.parts import in_file_name
from training.forgetting.dependents import Dependent
from training.options.config_file import option
from training.study.command import study
from training.study.config import StudyConfig
from training.study.search import BEST

RUNS = "runs"
"""Folder of the runs in that of an experiment."""


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """A folder of runs that one command has made, some of which had images of the person."""

    folder: Path
    kind: Literal["study", "search", "folds"]
    dependents: tuple[Dependent, ...]
    """Those of its runs whose weights depend on them."""
    total: int
    """Number of all its runs."""

    @property
    def sentence(self) -> str:
        """What is said of it."""
        return f"the weights of {len(self.dependents)} of its {self.total} runs depend on them"

    @property
    def base(self) -> Path:
        """The folder without the name of the column that folds have left out."""
        how, _ = self._folds_options() if self.kind == "folds" else ({}, {})
        by = f"-by-{in_file_name(left_out.name_of(how['leave_out']))}" if "leave_out" in how else ""
        return self.folder.with_name(self.folder.name.removesuffix(by))

    def make_again(self, name: str, data: Location | None, cache: Path, out: Path) -> Path:
        """Run its command under another name, and return its folder. Raises all that training raises."""
        if self.kind == "folds":
            how, options = self._folds_options()
            given = options | how | {"data": data, "out": out, "cache": cache, "name": name, "floor": ()}
            return folds(FoldsConfig(**given))
        declared = self.folder / runs.STUDY
        config = StudyConfig(study=str(declared), data=data, out=self.folder.parent, name=name, cache=cache, yes=True)
        if self.kind == "search":
            config = replace(config, study="search", paths=(declared,), trials=self.total)
        return study(config)

    def _folds_options(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """What makes the parts, and the options of each training. Raises ConfigError."""
        path = self.folder / OPTIONS
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
        how = {name: values.pop(name) for name in HOW if name in values}
        return how, {name: option(name, value, str(path)) for name, value in values.items()}


def find_experiments(dependents: Sequence[Dependent]) -> list[Experiment]:
    """Those whose runs are among the dependents, by name: folds by a column are compared with those without."""
    folders = sorted({one.run.parent.parent for one in dependents if one.depends and one.run.parent.name == RUNS})
    return [
        Experiment(
            folder=folder,
            kind=kind,
            dependents=tuple(one for one in dependents if one.depends and one.run.parent == folder / RUNS),
            total=sum(path.is_dir() for path in (folder / RUNS).iterdir()),
        )
        for folder in folders
        if (kind := _kind(folder)) is not None
    ]


def _kind(folder: Path) -> Literal["study", "search", "folds"] | None:
    if (folder / runs.JOURNAL).is_file() or (folder / BEST).is_file():
        return "search"
    if (folder / runs.STUDY).is_file():
        return "study"
    return "folds" if (folder / OPTIONS).is_file() else None
