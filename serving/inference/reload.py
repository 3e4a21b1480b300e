"""Reload the model when its file changes: the new model is opened and checked beside the old one, then replaces it.

The file is polled. inotify does not report a changed symlink further up the path, which is how `runs/latest` and the
volumes of Kubernetes change, nor writes by another machine on a shared volume.
"""

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from serving.contract.model import Classifier, ModelRefused
from serving.contract.neighbours.file import neighbours_of
from serving.contract.signature import signature_of
from serving.metrics import ReloadOutcome

log = logging.getLogger("bentoml.twinlens")


@dataclass(frozen=True)
class FileState:
    """Identifies a version of a file: it differs when the path leads to another file or the file is written to.

    So it does when the signature or the training images beside it change, which may come later than the file.
    """

    device: int
    inode: int
    size: int
    modified_ns: int
    signature: "FileState | None" = None
    neighbours: "FileState | None" = None

    @classmethod
    def of(cls, path: Path) -> "FileState | None":
        """The state of the file at `path`, symlinks followed; None when no file can be reached."""
        file = cls._alone(path)
        return file and replace(
            file, signature=cls._alone(signature_of(path)), neighbours=cls._alone(neighbours_of(path))
        )

    @classmethod
    def _alone(cls, path: Path) -> "FileState | None":
        try:
            status = path.stat()
        except OSError:
            return None
        return cls(status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)


class Reloader:
    """Serves the model in the file at `path`, and each new version of it.

    `open_model` opens and checks a file, or raises ModelRefused. `serve` makes a model answer requests. `observe` gets
    the outcome of each attempt. When an attempt fails, the old model continues to answer, and the refused file is not
    tried again until it changes.
    """

    def __init__(
        self,
        path: Path,
        open_model: Callable[[Path], Classifier],
        serve: Callable[[Classifier], None],
        observe: Callable[[ReloadOutcome], None] = lambda outcome: None,
    ) -> None:
        self._path = path
        self._open = open_model
        self._serve = serve
        self._observe = observe
        self._tried: FileState | None = None
        self._last_state: FileState | None = None
        self._served: tuple[str, str | None] | None = None

    def start(self) -> None:
        """Serve the file if it exists. Raises ModelRefused."""
        self._tried = self._last_state = FileState.of(self._path)
        if self._tried is not None:
            self._swap(self._open(self._path))

    async def watch(self, every_s: float) -> None:
        """Check the file every `every_s` seconds, without end, in a thread."""
        while True:
            await asyncio.sleep(every_s)
            await asyncio.to_thread(self.check)

    def check(self) -> None:
        """Load the file if it differs from the last attempt's and is the same as at the last check.

        A file that is being written is therefore not opened until the writing pauses.
        """
        state, before = FileState.of(self._path), self._last_state
        self._last_state = state
        if state is None:
            if before is not None:
                log.warning("%s no longer exists; the model loaded from it still answers", self._path)
            return
        if state != before or state == self._tried:
            return
        self._tried = state
        outcome = self._try(state)
        if outcome is not None:
            self._observe(outcome)

    def _try(self, state: FileState) -> ReloadOutcome | None:
        """The outcome; None when the file changed during the attempt, so that it will be tried again."""
        try:
            classifier = self._open(self._path)
        except ModelRefused as error:
            if FileState.of(self._path) != state:
                return None
            log.error("the new model is refused, %s: %s", self._still, error)
            return "refused"
        except Exception:  # no error may end the watch or the service
            log.exception("the new model could not be opened, %s", self._still)
            return "failed"
        if FileState.of(self._path) != state:
            return None
        if _identity(classifier) == self._served:
            return "unchanged"
        self._swap(classifier)
        return "swapped"

    @property
    def _still(self) -> str:
        return "no model answers yet" if self._served is None else "the previous model still answers"

    def _swap(self, classifier: Classifier) -> None:
        self._serve(classifier)
        self._served = _identity(classifier)
        log.info(
            "model %s %s (%s) on %s answers: card checked, %d goldens replayed, %d training images beside it",
            classifier.card.name,
            classifier.card.version,
            self._path,
            classifier.provider,
            len(classifier.card.goldens),
            len(classifier.index.paths) if classifier.index else 0,
        )


def _identity(classifier: Classifier) -> tuple[str, str | None]:
    """What differs where a model, or the training images beside it, are others."""
    return classifier.digest, classifier.index.state if classifier.index else None
