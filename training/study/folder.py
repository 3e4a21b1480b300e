"""The folder of a study: its specification, and an ordinary run for each cell of the grid.

study.yaml     the specification
cells/         options of each run
runs/          the runs
logs/          console output of each run
"""

import shutil
from dataclasses import asdict
from pathlib import Path

import yaml

from serving.contract.objects import Url
from training.engine.runs import CONFIG, STUDY
from training.errors import ConfigError
from training.process_pool import TrainingJob
from training.storage import locked, write_atomically
from training.study.config import StudyConfig
from training.study.results import log
from training.study.spec import document
from training.study.spec.grid import Cell, Study, plain

PREPARING = ".preparing"
"""A lock: of several processes one at a time looks for study.yaml and writes it."""
REPORTING = ".reporting"
"""A lock: of several processes that end together, one at a time writes the results."""


def prepare_study(study: Study, folder: Path) -> None:
    """Create the folder and write study.yaml, unless the same is there.

    Processes may do so at the same moment. Raises ConfigError for a folder with runs of another study, and OSError.
    """
    for part in ("cells", "logs", "runs"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    path, content = folder / STUDY, document.to_yaml(study).encode()
    with locked(folder / PREPARING):
        if path.exists() and path.read_bytes() == content:
            return
        if path.exists():
            _refuse_another(study, document.read(path), folder)
        write_atomically(path, lambda file: file.write(content))


def _refuse_another(study: Study, kept: Study, folder: Path) -> None:
    for name, before, now in zip(("base", "axes"), identity(kept), identity(study), strict=True):
        if before != now:
            differing = [key for key in before | now if before.get(key) != now.get(key)]
            changes = "; ".join(f"{key} was {before.get(key)}, now it is {now.get(key)}" for key in differing)
            raise ConfigError(f"{folder}: holds runs of another {name}: {changes}. --name puts this study elsewhere")


def identity(study: Study) -> tuple[dict[str, object], dict[str, object]]:
    """What determines the runs of a study, except the number of seeds: base options, axes and ranges, as plain
    values.
    """
    axes: dict[str, object] = {
        axis: {level: plain(options) for level, options in levels.items()} for axis, levels in study.axes.items()
    }
    axes |= {name: asdict(limits) for name, limits in study.ranges.items()}
    return plain(study.base), axes


def read_spec(folder: Path) -> Study:
    """The study of a folder. Raises ConfigError."""
    if not (folder / STUDY).is_file():
        raise ConfigError(f"{folder}: expected a study's folder, with its {STUDY}")
    return document.read(folder / STUDY)


def job(cell: Cell, folder: Path, config: StudyConfig) -> TrainingJob:
    """The command line that trains the run of a cell, or resumes it."""
    options = folder / "cells" / f"{cell.name}.yaml"
    options.write_text(yaml.safe_dump(plain({"workers": 0} | cell.options), sort_keys=False), encoding="utf-8")
    run = folder / "runs" / cell.name
    if run.exists() and not (run / CONFIG).exists():
        shutil.rmtree(run)  # killed before its first write
    cache = config.cache or config.out.parent / ".cache"
    values = {"config": options, "out": run.parent, "name": cell.name, "seed": cell.seed, "cache": cache}
    arguments = [part for name, value in values.items() for part in (f"--{name}", str(value))]
    # Its runs answer a question; none of them is to be served, and they do not end in order.
    arguments += ["--resume", "auto", "--device", config.device, "--promote", "never"]
    if isinstance(data := cell.options.get("data"), Url):
        arguments += ["--data", data.text]  # the file has it without its password or signature
    return TrainingJob(name=cell.name, arguments=["train", *arguments], log=log(run))
