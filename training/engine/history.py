"""The history of a run, `history.json`: written after every epoch, also when the run diverges."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from pydantic import TypeAdapter
from torch import nn

from serving.contract.card.provenance import PretrainedWeights
from training.engine.progress import Epoch
from training.engine.train_state import RunContext
from training.errors import NonFiniteLoss
from training.models import diagnostics
from training.models.diagnostics import AtStart
from training.storage import write_atomically

HISTORY = "history.json"
IMAGES_NAMED = 5
"""Number of images that are named of the step whose loss is not finite."""
PROBED = 64
"""Training images on which the signal and the gradients of the untrained network are measured."""


@dataclass(frozen=True, kw_only=True)
class History:
    """The network before its first step, the epochs since, and whether the loss stopped being a number."""

    classes: int
    parameters: int
    steps_an_epoch: int
    at_start: Sequence[AtStart]
    epochs: Sequence[Epoch]
    weights: PretrainedWeights | None = None
    """The pretrained weights that training started from."""
    diverged: str | None = None
    """Where the loss or a prediction was not finite; None: nowhere."""


_HISTORY = TypeAdapter(History)


def begin(model: nn.Sequential, context: RunContext, steps_an_epoch: int) -> History:
    """The history of a model before its first step.

    How signal and gradient pass through it is measured for the own networks; timm's are mostly pretrained.
    """
    dataset, own_network = context.dataset, context.config.own_network
    train = dataset.splits["train"]
    probed = train[np.linspace(0, len(train) - 1, min(PROBED, len(train)), dtype=int)]
    return History(
        classes=len(dataset.classes),
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        steps_an_epoch=steps_an_epoch,
        at_start=diagnostics.at_start(model, dataset.images[probed], dataset.labels[probed]) if own_network else [],
        epochs=[],
        weights=_weights(context),
    )


def _weights(context: RunContext) -> PretrainedWeights | None:
    """Those that training starts from, also by way of the run of --init-from."""
    if context.weights is not None or context.config.init_from is None:
        return context.weights.record if context.weights is not None else None
    histories = (read(place) for place in places(context.config.init_from))
    return next((history.weights for history in histories if history is not None), None)


def places(start: Path) -> tuple[Path, ...]:
    """Where the run is that --init-from names: its folder, or that of a checkpoint in it, the nearest first."""
    resolved = start.resolve()
    return resolved, *resolved.parents[:2]


def write(run: Path, history: History) -> None:
    """Write it into the run's folder."""
    content = _HISTORY.dump_json(history, indent=1)
    write_atomically(run / HISTORY, lambda file: file.write(content))


def read(run: Path) -> History | None:
    """The history in a run's folder; None before the run's first step."""
    path = run / HISTORY
    return _HISTORY.validate_json(path.read_bytes()) if path.exists() else None


def mark_diverged(error: NonFiniteLoss, context: RunContext) -> None:
    """Name images of the step whose loss is not finite, and record in the history that the run diverged."""
    if error.images:
        named = ", ".join(context.dataset.keys[image] for image in error.images[:IMAGES_NAMED])
        error.add_note(f"of that step's {len(error.images)} images the first are {named}")
    if context.group.first:
        history = read(context.config.run)
        assert history is not None
        write(context.config.run, replace(history, diverged=str(error)))
