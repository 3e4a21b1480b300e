"""`python -m training reproduce`: train a model again from its card alone, and compare both to the last bit."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import tyro

from serving.contract.card.model_card import ModelCard
from serving.contract.card.provenance import Provenance
from serving.contract.files.names import INT8, MODEL
from serving.contract.model import Classifier, open_model
from training.data.cache import Cache
from training.data.formats import find_source
from training.data.selection import check_labels, gather_images
from training.data.sources.forgotten import Forgotten
from training.engine import runs
from training.errors import CheckFailed, ConfigError
from training.metrics import costs
from training.options.choices import Data
from training.options.config import TrainConfig
from training.options.config_file import option, without_ignored
from training.reproduction.comparison import differing_conditions, differing_results
from training.signals import Interruption
from training.storage import write_atomically
from training.train import train

RESULT = "reproduction.json"
ELSEWHERE = ("data", "corrections", "out", "name", "resume", "cache", "promote", "floor", "margin")
"""Options that a reproduction does not take from the card: places, and what decides on its promotion."""


@dataclass(frozen=True, kw_only=True)
class ReproduceConfig:
    """Train a model again by the options in its card, and tell whether the same file comes out, bit for bit.

    The exit code is 0 where it does, else 1, with what differs first: the data, a package's version, the number of
    threads, the machine. The same command continues a reproduction that was stopped.
    """

    model: tyro.conf.Positional[Path]
    """A run's folder, or its model.onnx; nothing else of the run is read."""
    data: Data | None = None
    """The images that it was trained on. None: the digits."""
    corrections: Path | None = None
    """The file of --corrections, where the training had one."""
    runs: Path = Path("runs/reproductions")
    """Folder in which the new run is kept. Nothing in it is ever promoted."""
    cache: Path | None = None
    """As for training. None: .cache in --runs."""


def reproduce(config: ReproduceConfig, interruption: Interruption | None = None) -> Path:
    """Train again, compare, write RESULT into the new run's folder and return that.

    Raises CheckFailed where the result or the data is not the same, and all that training raises.
    """
    path = runs.model_file(config.model)
    original = open_model(path, threads=0)
    card = original.card
    if path.name.endswith(INT8):
        raise ConfigError(f"{path}: expected a {MODEL}; the file in eight bits is made of it")
    known = {field.name for field in fields(TrainConfig)}
    if unknown := sorted(card.provenance.config.keys() - known):
        raise ConfigError(f"{path}: the card has options that this version does not know: {', '.join(unknown)}")
    _check_data(config, card)
    with TemporaryDirectory() as folder, _threads(card.provenance):
        run = train(_options(config, card, Path(folder)), interruption)
    reproduction = open_model(run / MODEL, threads=0)
    facts = _facts(original, reproduction)
    write_atomically(run / RESULT, lambda file: file.write(json.dumps(facts, indent=1, ensure_ascii=False).encode()))
    if not facts["identical"]:
        print(reproduction_summary(run))
        first = next(iter(facts["differing_conditions"]), "nothing that is recorded differs")
        raise CheckFailed(f"bit-identical: no; {', '.join(facts['differing_results'])}; what differs first: {first}")
    return run


def reproduction_summary(run: Path) -> str:
    """What the command prints at its end."""
    facts = json.loads((run / RESULT).read_text(encoding="utf-8"))
    identical = facts["identical"]
    return "\n".join(
        (
            "",
            f"bit-identical: {'yes' if identical else 'no'}",
            f"version {facts['version']}, again {facts['version_again']}",
            f"weights {facts['weights']}",
            *([] if identical else [f"again   {facts['weights_again']}"]),
            *([] if identical else [f"not the same: {', '.join(facts['differing_results'])}"]),
            *(f"differs {condition}" for condition in facts["differing_conditions"]),
            f"result  {run / RESULT}",
        )
    )


def _check_data(config: ReproduceConfig, card: ModelCard) -> None:
    """Raise CheckFailed for data that the model was not trained on: training on it would be in vain."""
    cache = Cache(config.cache or config.runs / ".cache")
    if card.provenance.config.get("corrections") and config.corrections is None:
        raise ConfigError(f"{config.model}: it was trained with --corrections; expected that file here, too")
    source = find_source(config.data, cache, [config.runs], config.corrections, Forgotten.of(config.runs))
    check_labels(source, card.classes)
    images, [trained_on] = gather_images(source, cache, [card])
    if trained_on is None:
        raise CheckFailed(
            f"bit-identical: no; what differs first: the data. {images.name} with its {len(images.keys):,} images is "
            f"not what the model was trained on, whose digest is {card.provenance.data_digest}: a name, a label, a "
            "split or a pixel is another"
        )


def _options(config: ReproduceConfig, card: ModelCard, folder: Path) -> TrainConfig:
    """The options of the card, elsewhere; a pipeline of --augment is written into `folder`. Raises ConfigError."""
    where = f"{config.model}: the card"
    kept = without_ignored(card.provenance.config)
    values: dict[str, Any] = {key: value for key, value in kept.items() if key not in ELSEWHERE}
    if isinstance(values.get("augment"), dict):
        pipeline = folder / "augment.json"
        pipeline.write_text(json.dumps(values["augment"]), encoding="utf-8")
        values["augment"] = str(pipeline)
    if card.costs is not None:
        costs.write(folder / "costs.csv", card.costs, card.classes)
        values["costs"] = str(folder / "costs.csv")
    run_folders = sorted(run.parent for run in config.runs.glob(f"{card.version}-*/{runs.CONFIG}"))
    unfinished = [run for run in run_folders if not runs.is_finished(run)]
    if unfinished:
        run_config = replace(runs.load_config(unfinished[-1]), data=config.data, corrections=config.corrections)
        return replace(run_config, resume=str(unfinished[-1]), cache=config.cache)
    return TrainConfig(
        **{key: option(key, value, where) for key, value in values.items()},
        data=config.data,
        corrections=config.corrections,
        out=config.runs,
        name=f"{card.version}-{datetime.now(UTC):%Y%m%d-%H%M%S}",
        cache=config.cache,
        promote="never",
    )


@contextmanager
def _threads(recorded: Provenance) -> Iterator[None]:
    """As many threads as then: the order of sums depends on their number."""
    before = torch.get_num_threads()
    if "threads" in recorded.environment:
        torch.set_num_threads(int(recorded.environment["threads"]))
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _facts(original: Classifier, reproduction: Classifier) -> dict[str, Any]:
    then, now = original.card.provenance, reproduction.card.provenance
    results = differing_results((original.card, reproduction.card), (original.path, reproduction.path))
    return {
        "identical": not results,
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "file_digest": original.digest,
        "data_digest": then.data_digest,
        "version": original.card.version,
        "version_again": reproduction.card.version,
        "weights": then.checkpoint_digest,
        "weights_again": now.checkpoint_digest,
        "differing_results": results,
        "differing_conditions": differing_conditions(then, now),
    }
