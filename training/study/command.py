"""`python -m training study NAME|FILE.yaml`: train a grid of runs and answer questions about it, from `study` down."""

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from tqdm import tqdm

from training.errors import ConfigError
from training.options.limits import share_of
from training.process_pool import ProcessPool, TrainingJob
from training.storage import locked
from training.study.config import StudyConfig, concurrent_runs, declared
from training.study.folder import REPORTING, identity, job, prepare_study, read_spec
from training.study.report import write_study_report
from training.study.results import collect_results, outcome
from training.study.search import search
from training.study.spec.grid import Cell

RUNS_WITHOUT_YES = 200


def study(config: StudyConfig) -> Path:
    """Make the runs that are missing, write the report, and return the study's folder.

    Raises ConfigError, OSError, Interrupted.
    """
    if config.study == "merge":
        return merge(config)
    if config.study == "search":
        return search(config)
    declaration, folder = declared(config, config.study), config.out / (config.name or Path(config.study).stem)
    if declaration.ranges:
        raise ConfigError(f"{config.study}: {', '.join(declaration.ranges)}: a range is for `study search`")
    prepare_study(declaration, folder)
    cells = shard(declaration.cells(), config.shard)
    missing = [cell for cell in cells if outcome(folder / "runs" / cell.name) not in ("done", "diverged")]
    print(f"study  {folder}: {len(cells)} runs, {len(missing)} to make")
    if len(missing) > RUNS_WITHOUT_YES and not config.yes:
        started = time.monotonic()
        train_cells(missing[:1], folder, config)  # not wasted: a finished run is not made again
        hours = (time.monotonic() - started) * (len(missing) - 1) / concurrent_runs(config) / 3600
        raise ConfigError(
            f"{len(missing)} runs are more than {RUNS_WITHOUT_YES}. The first is made; by its time the others take "
            f"about {hours:.1f} hours, {concurrent_runs(config)} at a time. --yes makes them"
        )
    train_cells(missing, folder, config)
    with locked(folder / REPORTING):
        write_study_report(folder, declaration, collect_results(declaration, [folder]))
    return folder


def merge(config: StudyConfig) -> Path:
    """Write the report of the runs in several folders, which must be shards of one study. Raises ConfigError."""
    if not config.paths:
        raise ConfigError("study merge: expected the folders of a study's shards")
    parts = [read_spec(folder) for folder in config.paths]
    for folder, part in zip(config.paths, parts, strict=True):
        if identity(part) != identity(parts[0]):
            raise ConfigError(f"study merge: {folder} is not of the same study as {config.paths[0]}")
    whole = replace(parts[0], seeds=max(part.seeds for part in parts))
    folder = config.out / config.name if config.name else config.paths[0]
    prepare_study(whole, folder)
    with locked(folder / REPORTING):
        write_study_report(folder, whole, collect_results(whole, [*config.paths]))
    return folder


def shard(cells: Sequence[Cell], which: str | None) -> list[Cell]:
    """Every n-th cell from the i-th on, for `which` i/n; all cells for None. Raises ConfigError."""
    if which is None:
        return list(cells)
    i, n = share_of("shard", which)
    return list(cells[i - 1 :: n])


def train_cells(cells: Sequence[Cell], folder: Path, config: StudyConfig) -> None:
    """Train the run of each cell in a process of its own, and print how each ends; a failed run stops no other."""
    with tqdm(total=len(cells), desc="runs", unit="run", disable=None) as bar:

        def ended(job: TrainingJob, code: int) -> None:
            state = outcome(folder / "runs" / job.name)
            bar.write(f"{state:8} {job.name}" + (f" (exit code {code}, {job.log})" if state == "failed" else ""))
            bar.update()

        pool = ProcessPool(size=concurrent_runs(config), threads=config.threads, ended=ended)
        pool.run(job(cell, folder, config) for cell in cells)
