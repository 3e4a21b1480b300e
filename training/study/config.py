"""The options of `python -m training study`, and the study that they name."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import tyro
import yaml

from training.errors import ConfigError
from training.options.choices import Data
from training.options.config_file import from_yaml, option
from training.process_pool import pool_size
from training.study.spec import document
from training.study.spec.grid import Options, Study

STUDIES = Path(__file__).parent / "studies"


@dataclass(frozen=True, kw_only=True)
class StudyConfig:
    """Train a grid of configurations and answer questions about it, with intervals over seeds.

    The same command continues a study that was stopped. A run that fails is reported, and the others continue. Each is
    an ordinary run, which can be opened, evaluated and served.
    """

    study: tyro.conf.Positional[str]
    """A study's name or YAML file; or merge, to answer by the runs of several folders; or search."""
    paths: tyro.conf.Positional[tuple[Path, ...]] = ()
    """With merge: folders of the shards of one study. With search: a YAML file with the axes to draw from."""
    trials: int = 30
    """With search: the largest number of runs; trials that are behind the others are stopped early."""
    storage: str | None = None
    """With search: URL of a database for the record of its trials, as SQLAlchemy writes it. None: a journal file."""
    data: Data | None = None
    """Images with labels, as for training. None: as the study declares, else the digits."""
    epochs: int | None = None
    """Epochs of each run. None: as the study declares."""
    seeds: int | None = None
    """Runs of each cell of the grid; intervals need two. None: as the study declares."""
    config: Path | None = None
    """A YAML file of options for all runs, such as a run's config.yaml; the options of the study's axes take
    precedence, and those that a study sets itself, such as the seed, are left out."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to train."""
    out: Path = Path("runs/studies")
    """Folder of all studies."""
    name: str | None = None
    """Folder of this study in --out. None: the study's name."""
    cache: Path | None = None
    """As for training. None: .cache beside --out."""
    jobs: int | None = None
    """Runs at the same time. None: the number of GPUs, else as many as the cores allow."""
    threads: int = 1
    """Cores of each run. Another number may change the last digits of results; --jobs does not."""
    shard: str | None = None
    """i/n: make the i-th of n shards of the runs only, as a pod of an Indexed Job does; then `study merge` answers."""
    yes: bool = False
    """Start even with more than 200 runs to make."""

    def __post_init__(self) -> None:
        """Raise ConfigError with the option, what is expected and the value."""
        for name in ("epochs", "seeds", "trials", "jobs", "threads"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"--{name}: expected 1 or more, got {value}")


def declared(config: StudyConfig, name: str) -> Study:
    """The study of that name or file, with the options of the command line applied. Raises ConfigError."""
    named = STUDIES / f"{name}.yaml"
    path = named if named.exists() else Path(name)
    if not path.exists():
        names = ", ".join(sorted(file.stem for file in STUDIES.glob("*.yaml")))
        raise ConfigError(f"study {name}: there is no such file; the studies that have a name are {names}")
    study = document.read(path)
    if config.config is not None:
        study = study.with_base(_shared(config.config))
    overrides = {"data": config.data, "epochs": config.epochs}
    study = study.with_base({key: value for key, value in overrides.items() if value is not None})
    if config.seeds is not None:
        study = replace(study, seeds=config.seeds)
    document.check(study, str(path))
    return study


def _shared(path: Path) -> Options:
    """The options of a file, such as a run's config.yaml, without those that a study sets itself, which are printed."""
    from_yaml(path)  # raises for an unknown option
    values = yaml.safe_load(path.read_text(encoding="utf-8"))
    if excluded := [key for key in values if key in document.OWN]:
        print(f"config {path}: without {', '.join(excluded)}, which a study sets itself")
    return {key: option(key, value, str(path)) for key, value in values.items() if key not in document.OWN}


def concurrent_runs(config: StudyConfig) -> int:
    """Runs at the same time: --jobs, else one for each GPU, else as many as the cores allow."""
    return pool_size(config.jobs, config.threads, config.device)
