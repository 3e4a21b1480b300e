"""`python -m training folds`: answers to every image by a model that has not seen it, from `folds` down."""

import shutil
from dataclasses import replace
from pathlib import Path

import joblib
import yaml
from tqdm import tqdm

from serving.contract.objects import Location, Url
from training.data.dataset import load_dataset
from training.engine.runs import CONFIG
from training.errors import EXIT_CODES, ConfigError, ProcessLost
from training.folds.config import FoldsConfig
from training.folds.report import write_folds_report
from training.folds.results import collect
from training.models import backbones
from training.storage import write_atomically
from training.study.process_pool import Job, ProcessPool, visible_gpus
from training.study.results import log, outcome

OPTIONS = "options.yaml"
"""File in the folder of the folds: the options of each training, as the user gave them."""
PLACES = ("out", "cache")
"""Options that change no result."""


def folds(config: FoldsConfig) -> Path:
    """Make the trainings that are missing, write the report, and return the folder with both.

    Raises ConfigError, DataError, OSError, Interrupted, and for a training that fails the error of its exit code.
    """
    folder = config.out / "folds" / (config.name or _named(config.data))
    config = replace(config, cache=config.cache or config.out / ".cache")
    # Read before any training: what is wrong with the data, or makes no folds of it, costs no time.
    dataset = load_dataset(replace(backbones.check(config.training), fold=f"1/{config.folds}"))
    prepare(folder, config)
    runs = [folder / "runs" / f"{i}-of-{config.folds}" for i in range(1, config.folds + 1)]
    missing = [run for run in runs if outcome(run) != "done"]
    print(f"folds  {folder}: {len(runs)} trainings, {len(missing)} to make, each as long as an ordinary one")
    train_folds(missing, config)
    write_folds_report(folder, dataset, collect(runs, dataset))
    return folder


def _named(data: Location | None) -> str:
    if data is None:
        return "digits"
    return data.name.partition(".")[0] if isinstance(data, Url) else data.resolve().stem


def prepare(folder: Path, config: FoldsConfig) -> None:
    """Create the folder and write the options into it. Raises ConfigError for a folder with folds of other options."""
    options = folder / OPTIONS
    given = yaml.safe_load(config.training.to_yaml())
    now = {"folds": config.folds} | {name: value for name, value in given.items() if name not in PLACES}
    if options.exists():
        before = yaml.safe_load(options.read_text(encoding="utf-8"))
        differing = [name for name in before | now if before.get(name) != now.get(name)]
        if differing:
            changes = "; ".join(f"{name} was {before.get(name)}, now it is {now.get(name)}" for name in differing)
            raise ConfigError(f"{folder}: holds folds of other options: {changes}. --name puts these elsewhere")
    for part in ("logs", "runs"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    write_atomically(options, lambda file: file.write(yaml.safe_dump(now, sort_keys=False).encode()))


def train_folds(runs: list[Path], config: FoldsConfig) -> None:
    """Train each in a process of its own. Raises the error of its exit code for the first that failed, after all."""
    by_name, failed = {run.name: run for run in runs}, list[tuple[Job, int]]()
    with tqdm(total=len(runs), desc="folds", unit="fold", disable=None) as bar:

        def ended(job: Job, code: int) -> None:
            if outcome(by_name[job.name]) != "done":
                failed.append((job, code))
            bar.update()

        gpus = 0 if config.device == "cpu" else len(visible_gpus())
        size = config.jobs or gpus or max(joblib.cpu_count() // config.threads, 1)
        ProcessPool(size=size, threads=config.threads, ended=ended).run(job(run, config) for run in runs)
    if failed:
        first, code = failed[0]
        kind = next((kind for kind, known in EXIT_CODES.items() if known == code), ProcessLost)
        lines = first.log.read_text(errors="replace").strip().splitlines() if first.log.exists() else []
        reason = next((line for line in reversed(lines) if line.startswith("error: ")), "see its output")
        raise kind(
            f"fold {first.name} failed with exit code {code} ({first.log}): {reason.removeprefix('error: ')}. "
            f"The same command makes the {len(failed)} of {len(runs)} that failed again"
        )


def job(run: Path, config: FoldsConfig) -> Job:
    """The command line that trains a fold, or resumes it."""
    options = run.parent.parent / "logs" / f"{run.name}.yaml"
    options.write_text(replace(config.training, fold=run.name.replace("-of-", "/")).to_yaml(), encoding="utf-8")
    if run.exists() and not (run / CONFIG).exists():
        shutil.rmtree(run)  # killed before its first write
    values = {"config": options, "out": run.parent, "name": run.name, "resume": "auto", "promote": "never"}
    arguments = [part for name, value in values.items() for part in (f"--{name}", str(value))]
    return Job(name=run.name, arguments=["train", *arguments], log=log(run))
