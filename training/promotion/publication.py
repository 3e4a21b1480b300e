"""`python -m training publish`: what `latest` serves, in an object store, for services that read it there."""

import tempfile
from dataclasses import dataclass
from pathlib import Path

import tyro

from serving.contract.files.names import MODEL, files_of
from serving.contract.model import open_model
from serving.contract.objects import Store, StoreUnusable, Url, location
from training.engine import runs
from training.errors import ConfigError
from training.promotion import log
from training.promotion.champion import find_champion_file
from training.storage import digest, locked


@dataclass(frozen=True, kw_only=True)
class PublishConfig:
    """Copy the model that `latest` points to into a folder of an object store, where TWINLENS_MODEL may name it.

    Only what the rule, or `promote --force`, has moved `latest` to is copied. The same command repeats a copy that
    failed.
    """

    to: tyro.conf.Positional[str]
    """URL of the folder, such as s3://bucket/models/skin; what is there is replaced."""
    out: Path = Path("runs")
    """Folder in which runs are kept."""


def publish(config: PublishConfig) -> Path:
    """Copy the model, what is beside it and its eight-bit file, and return the run that was copied.

    Signatures and the index of training images come before their file and the model last: a service never reads a model
    without what belongs to it, and keeps the one before until all fit. What the run does not have is deleted at the
    end. The model is read back and compared. A run that `forget` has marked since is not copied. Raises ConfigError,
    ModelRefused, OSError.
    """
    link, store = config.out / runs.LATEST, _store(config.to)
    with locked(config.out / log.LOCK):  # `latest` does not move meanwhile
        champion = find_champion_file(config.out)
        if champion is None or champion.digest is None:
            raise ConfigError(f"{link / MODEL}: there is no promoted model to publish")
        entries, run = log.history(config.out), link.resolve()
        if log.targets(entries)[-1:] != [(champion.target, champion.digest)]:
            raise ConfigError(f"{link} points to {champion.target}, and {config.out / log.LOG} has not moved it there")
        [*_, moved] = (entry for entry in entries if entry.event != "refused")
        if (run / runs.FORGOTTEN).exists() and runs.HAS_LEARNED not in moved.faults:
            raise ConfigError(f"{run}: {runs.HAS_LEARNED}; promote another run first")
        open_model(run / MODEL, threads=0, training_images=True)  # no store gets what the service refuses
        files = files_of(run)
        for file in files:
            if file.is_file():
                store.upload(file)
        for file in files:
            if not file.is_file():
                store.delete(file.name)
        _check(store, run / MODEL)
    return run


def published_summary(run: Path) -> str:
    """What the command prints at the end."""
    return f"published {run / MODEL}"


def _store(to: str) -> Store:
    url = location(to)
    if not isinstance(url, Url):
        raise ConfigError(f"publish {to}: expected a URL of a folder, such as s3://bucket/models/skin")
    try:
        return Store(url)
    except StoreUnusable as error:
        raise ConfigError(f"publish {error}") from error


def _check(store: Store, model: Path) -> None:
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder, MODEL)
        store.download(copy, MODEL)
        if digest(copy) != digest(model):
            raise OSError(f"{store.url}: {MODEL} reads otherwise than it was written; publish it again")
