"""A grid of runs and what it answers: `python -m training study NAME|FILE.yaml`. Read `study` from top to bottom."""

import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import joblib
import tyro
import yaml
from tqdm import tqdm

from training.config import from_yaml, option
from training.engine import runs
from training.errors import ConfigError
from training.storage import write_atomically
from training.study import process_pool, results
from training.study import report as study_report
from training.study import spec as grid
from training.study.process_pool import Job
from training.study.spec import Cell, Study

STUDIES = Path(__file__).parent / "studies"
GRID = "study.yaml"
RUNS_WITHOUT_YES = 200


@dataclass(frozen=True, kw_only=True)
class StudyConfig:
    """Run a grid of trainings and answer questions by it, with intervals over seeds.

    What was stopped goes on with the same command; a run that fails is reported and does not stop the others. Each is
    an ordinary run, which can be opened, evaluated and served.
    """

    study: tyro.conf.Positional[str]
    """A study's name or YAML file; or merge, to answer by the runs of several folders; or search."""
    paths: tyro.conf.Positional[tuple[Path, ...]] = ()
    """With merge: folders of shares of one study. With search: a YAML file whose axes are to be drawn from."""
    trials: int = 30
    """With search: runs to make, at most; what cannot win any more is stopped early."""
    data: Path | None = None
    """Images with labels, as for training. None: what the study says, else the digits."""
    epochs: int | None = None
    """Of each run. None: what the study says."""
    seeds: int | None = None
    """Runs of each cell of the grid; intervals need two. None: what the study says."""
    config: Path | None = None
    """A YAML file of options for all runs, as for training; those of the study's axes win."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to train."""
    out: Path = Path("runs/studies")
    """Folder in which studies are kept."""
    name: str | None = None
    """Folder of this study in --out. None: the study's name."""
    cache: Path | None = None
    """As for training. None: .cache beside --out."""
    jobs: int | None = None
    """Runs at a time. None: as many as there are GPUs, else as the cores allow."""
    threads: int = 1
    """Cores that each run computes with. Another number may change the last digits of results, --jobs does not."""
    shard: str | None = None
    """i/n: make the i-th of n shares of the runs only, as a pod of an Indexed Job does; `study merge` then answers."""
    yes: bool = False
    """Start even when there are more than 200 runs to make."""

    def __post_init__(self) -> None:
        """Raise ConfigError naming the option, what was expected and what came."""
        for name in ("epochs", "seeds", "trials", "jobs", "threads"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"--{name}: expected 1 or more, got {value}")


def study(config: StudyConfig) -> Path:
    """Make the runs that are missing, answer, and return the study's folder.

    Raises ConfigError, OSError, Interrupted.
    """
    if config.study == "merge":
        return merge(config)
    if config.study == "search":
        from training.study.search import search  # noqa: PLC0415  Optuna takes half a second, which no other verb shall pay

        return search(config)
    asked, folder = declared(config, config.study), config.out / (config.name or Path(config.study).stem)
    if asked.ranges:
        raise ConfigError(f"{config.study}: of {', '.join(asked.ranges)} there are ranges, for `study search`")
    keep(asked, folder)
    mine = share(asked.cells(), config.shard)
    missing = [cell for cell in mine if results.outcome(folder / "runs" / cell.name) not in ("done", "diverged")]
    print(f"study  {folder}: {len(mine)} runs, {len(missing)} to make")
    if len(missing) > RUNS_WITHOUT_YES and not config.yes:
        began = time.monotonic()
        make(missing[:1], folder, config)  # not lost: what is made is not made again
        hours = (time.monotonic() - began) * (len(missing) - 1) / at_a_time(config) / 3600
        raise ConfigError(
            f"{len(missing)} runs are more than {RUNS_WITHOUT_YES}. The first is made; by its time the others take "
            f"about {hours:.1f} hours, {at_a_time(config)} at a time. --yes makes them"
        )
    make(missing, folder, config)
    study_report.write(folder, asked, results.collect(asked, [folder]))
    return folder


def merge(config: StudyConfig) -> Path:
    """Answer by the runs of several folders, which must be shares of one study. Raises ConfigError."""
    if not config.paths:
        raise ConfigError("study merge: expected the folders of a study's shares")
    read = [grid.read(_study_file(folder)) for folder in config.paths]
    for folder, other in zip(config.paths, read, strict=True):
        if _identity(other) != _identity(read[0]):
            raise ConfigError(f"study merge: {folder} is not of the same study as {config.paths[0]}")
    whole = replace(read[0], seeds=max(part.seeds for part in read))
    folder = config.out / config.name if config.name else config.paths[0]
    keep(whole, folder)
    study_report.write(folder, whole, results.collect(whole, [*config.paths]))
    return folder


def declared(config: StudyConfig, name: str) -> Study:
    """The study of that name or file, with what the command line says of it. Raises ConfigError."""
    named = STUDIES / f"{name}.yaml"
    path = named if named.exists() else Path(name)
    if not path.exists():
        names = ", ".join(sorted(file.stem for file in STUDIES.glob("*.yaml")))
        raise ConfigError(f"study {name}: there is no such file; the studies that have a name are {names}")
    asked = grid.read(path)
    if config.config is not None:
        from_yaml(config.config)  # refuses what is no option
        given = yaml.safe_load(config.config.read_text(encoding="utf-8"))
        asked = asked.with_base({key: option(key, value, str(config.config)) for key, value in given.items()})
    told = {"data": config.data, "epochs": config.epochs}
    asked = asked.with_base({name: value for name, value in told.items() if value is not None})
    if config.seeds is not None:
        asked = replace(asked, seeds=config.seeds)
    grid.check(asked, str(path))
    return asked


def share(cells: Sequence[Cell], shard: str | None) -> list[Cell]:
    """Every n-th cell from the i-th on, of `i/n`; all without. Raises ConfigError."""
    if shard is None:
        return list(cells)
    try:
        i, n = map(int, shard.split("/"))
    except ValueError as error:
        raise ConfigError(f"--shard: expected i/n, such as 1/4, got {shard}") from error
    if not 1 <= i <= n:
        raise ConfigError(f"--shard: expected i from 1 to n, got {shard}")
    return list(cells[i - 1 :: n])


def keep(asked: Study, folder: Path) -> None:
    """Keep the grid beside its runs; refuse a folder that holds another one's. Raises ConfigError."""
    path = folder / GRID
    if path.exists():
        kept = grid.read(path)
        for name, there, here in zip(("base", "axes"), _identity(kept), _identity(asked), strict=True):
            if there != here:
                differing = [key for key in there | here if there.get(key) != here.get(key)]
                said = "; ".join(f"{key} was {there.get(key)}, now it is {here.get(key)}" for key in differing)
                raise ConfigError(f"{folder}: holds runs of another {name}: {said}. --name puts this study elsewhere")
    for part in ("cells", "logs", "runs"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    write_atomically(path, lambda file: file.write(grid.to_yaml(asked).encode()))


def make(cells: Sequence[Cell], folder: Path, config: StudyConfig) -> None:
    """Train each cell as a command line would, side by side; what fails is told and the others go on."""
    jobs = [prepare(cell, folder, config) for cell in cells]
    with tqdm(total=len(jobs), desc="runs", unit="run", disable=None) as bar:

        def ended(job: Job, code: int) -> None:
            state = results.outcome(folder / "runs" / job.name)
            bar.write(f"{state:8} {job.name}" + (f" (exit code {code}, {job.log})" if state == "failed" else ""))
            bar.update()

        process_pool.run(jobs, at_a_time=at_a_time(config), threads=config.threads, ended=ended)


def _identity(asked: Study) -> tuple[dict[str, object], dict[str, object]]:
    """What decides the runs, but for how many seeds there are."""
    of_axes: dict[str, object] = {
        axis: {level: grid.plain(options) for level, options in levels.items()} for axis, levels in asked.axes.items()
    }
    return grid.plain(asked.base), of_axes


def _study_file(folder: Path) -> Path:
    if not (folder / GRID).is_file():
        raise ConfigError(f"{folder}: expected a study's folder, with its {GRID}")
    return folder / GRID


def prepare(cell: Cell, folder: Path, config: StudyConfig) -> Job:
    """The command line that trains a cell, or goes on with it."""
    options = folder / "cells" / f"{cell.name}.yaml"
    options.write_text(yaml.safe_dump(grid.plain({"workers": 0} | cell.options), sort_keys=False))
    run = folder / "runs" / cell.name
    if run.exists() and not (run / runs.CONFIG).exists():
        shutil.rmtree(run)  # killed before it had begun
    cache = config.cache or config.out.parent / ".cache"
    told = {"config": options, "out": run.parent, "name": cell.name, "seed": cell.seed, "cache": cache}
    arguments = [part for name, value in told.items() for part in (f"--{name}", str(value))]
    arguments += ["--resume", "auto", "--device", config.device]
    return Job(name=cell.name, arguments=["train", *arguments], log=results.log(run))


def at_a_time(config: StudyConfig) -> int:
    """Runs that are made side by side: --jobs, else one a GPU, else as the cores allow."""
    gpus = 0 if config.device == "cpu" else len(process_pool.visible_gpus())
    return config.jobs or gpus or max(joblib.cpu_count() // config.threads, 1)


def summary(folder: Path) -> str:
    """The answers, for the console."""
    return study_report.summary(folder)
