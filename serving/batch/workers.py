"""What predicts the chunks of a batch: processes of this machine, or those of a Ray cluster."""

from collections.abc import Callable
from concurrent.futures import Future
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

from serving.batch.parts import Part
from serving.contract.model import Classifier
from serving.settings import Settings

CHUNKS_PER_WORKER = 3
"""Chunks that are queued or under way for each worker, so that no worker waits for the next one."""


@dataclass(frozen=True)
class Pool:
    """Workers that have the model."""

    submit: Callable[[list[str]], Future[Part]]
    """Queues a chunk of paths, below the folder that the workers know."""
    limit: Callable[[], int]
    """The number of chunks to have queued or under way now."""


@runtime_checkable
class Workers(Protocol):
    """Where chunks are predicted."""

    def open_model(self, settings: Settings) -> Classifier:
        """The model, opened in this process, for its card and digest. Raises ModelRefused."""

    def started(self, root: Path, settings: Settings, model: Classifier) -> AbstractContextManager[Pool]:
        """Workers with the same model as this one, for images below the folder `root`.

        They end with the context, at once where it raises. It raises BrokenProcessPool for a chunk that was lost with
        its process, and ModelRefused where the file is another one by now.
        """
