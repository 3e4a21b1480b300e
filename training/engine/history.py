"""What a run saw on its way: `history.json`, complete after every epoch, also of a run that diverges."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from pydantic import TypeAdapter

from training.engine.progress import Epoch
from training.models.diagnostics import AtStart
from training.storage import write_atomically

HISTORY = "history.json"


@dataclass(frozen=True, kw_only=True)
class History:
    """The network before its first step, the epochs since, and whether the loss stopped being a number."""

    classes: int
    parameters: int
    steps_an_epoch: int
    at_start: Sequence[AtStart]
    epochs: Sequence[Epoch]
    diverged: str | None = None
    """Where the loss or an answer was not finite; None: nowhere."""


_HISTORY = TypeAdapter(History)


def write(run: Path, history: History) -> None:
    """Keep it in the run's folder."""
    content = _HISTORY.dump_json(history, indent=1)
    write_atomically(run / HISTORY, lambda file: file.write(content))


def read(run: Path) -> History | None:
    """What the run saw; None of one that has not come to its first step."""
    path = run / HISTORY
    return _HISTORY.validate_json(path.read_bytes()) if path.exists() else None


def diverged(run: Path, where: str) -> None:
    """Note that the run ended because its loss, or an answer, is not finite."""
    seen = read(run)
    assert seen is not None
    write(run, replace(seen, diverged=where))
