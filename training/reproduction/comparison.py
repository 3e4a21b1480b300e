"""Whether two model files are one to the last bit, and in what their trainings differ."""

from collections.abc import Iterator
from dataclasses import fields, replace
from pathlib import Path

import onnx

from serving.contract.card.model_card import ModelCard
from serving.contract.card.provenance import Provenance

NOT_COMPUTED = ("contract_version", "name", "provenance", "certificate")
"""Fields of a card that training does not compute: time, place and options apart, it says what was served before."""
UNKNOWN = "not recorded"


def differing_results(cards: tuple[ModelCard, ModelCard], files: tuple[Path, Path]) -> list[str]:
    """What the second model has otherwise than the first: weights, graph, or fields of the card; empty for none.

    The graph is all of the file but its card.
    """
    first, second = cards
    differing = []
    if first.provenance.checkpoint_digest != second.provenance.checkpoint_digest:
        differing.append("weights")
    if _graph(files[0]) != _graph(files[1]):
        differing.append("graph")
    if first.calibration.prior_correction is None:  # older versions had none
        second = replace(second, calibration=replace(second.calibration, prior_correction=None))
    names = [field.name for field in fields(ModelCard) if field.name not in (*NOT_COMPUTED, "version")]
    return differing + [name for name in names if getattr(first, name) != getattr(second, name)]


def differing_conditions(then: Provenance, now: Provenance) -> list[str]:
    """What differed while the two were trained, what most often changes a result first, each with both values."""
    return [f"{name}: {before} then, {after} now" for name, before, after in _conditions(then, now) if before != after]


def _conditions(then: Provenance, now: Provenance) -> Iterator[tuple[str, str, str]]:
    weights = [provenance.weights.digest if provenance.weights else "none" for provenance in (then, now)]
    yield "pretrained weights", weights[0], weights[1]
    for name in dict.fromkeys((*then.packages, *now.packages)):
        yield name, then.packages.get(name, UNKNOWN), now.packages.get(name, UNKNOWN)
    environments = then.environment, now.environment
    for name in dict.fromkeys((*then.environment, *now.environment)):
        yield name, environments[0].get(name, UNKNOWN), environments[1].get(name, UNKNOWN)
    yield "source", then.git_revision or UNKNOWN, now.git_revision or UNKNOWN


def _graph(path: Path) -> bytes:
    file = onnx.load(path)
    del file.metadata_props[:]
    return bytes(file.SerializeToString(deterministic=True))
