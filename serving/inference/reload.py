"""Reload the model when its file changes: the new model is opened and checked beside the old one, then replaces it.

The file is polled. inotify does not report a changed symlink further up the path, which is how `runs/latest` and the
volumes of Kubernetes change, nor writes by another machine on a shared volume.
"""

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from time import monotonic

from serving.contract.files.names import neighbours_of, signature_of
from serving.contract.files.signature import SignatureRefused
from serving.contract.model import Classifier, ModelRefused
from serving.metrics import ReloadOutcome

log = logging.getLogger("bentoml.twinlens")

FIRST_PAUSE_S, LONGEST_PAUSE_S = 10.0, 300.0
"""Seconds after an attempt that says nothing about the file's content; each pause is twice the last one."""


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
    the outcome of each attempt. When an attempt fails, the old model continues to answer. A refused file is not tried
    again until it changes. One that could not be read, or not run for lack of memory, is tried again after a pause.
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
        self._judged: FileState | None = None
        self._failed: FileState | None = None
        self._missing = False
        self._last_error = ""
        self._pause_s = FIRST_PAUSE_S
        self._not_before = 0.0
        self._last_state: FileState | None = None
        self._served: tuple[str, str | None] | None = None
        self._served_state: FileState | None = None

    def start(self) -> None:
        """Serve the file if it exists. Raises ModelRefused."""
        self._judged = self._last_state = FileState.of(self._path)
        if self._judged is not None:
            self._swap(self._open(self._path))
            self._served_state = self._judged

    async def watch(self, every_s: float) -> None:
        """Check the file every `every_s` seconds, without end, in a thread."""
        while True:
            await asyncio.sleep(every_s)
            await asyncio.to_thread(self.check)

    def check(self) -> None:
        """Load the file if there is no verdict on it and it is the same as at the last check.

        A file that is being written is therefore not opened until the writing pauses.
        """
        state, before = FileState.of(self._path), self._last_state
        self._last_state = state
        if state is None:
            if before is not None:
                log.warning("%s no longer exists: %s", self._path, self._still)
                self._observe("missing")
                self._missing = True
            return
        if state == before == self._served_state and (self._failed is not None or self._missing):
            self._failed, self._missing = None, False  # a roll back from a file that could not be loaded, or was gone
            self._observe("unchanged")
        if state != before or state == self._judged or (state == self._failed and monotonic() < self._not_before):
            return
        outcome = self._try(state)
        if outcome is None:
            return
        if outcome != "failed":
            self._judged = state
        if outcome in ("swapped", "unchanged"):
            self._served_state, self._missing = state, False
        self._observe(outcome)

    def _try(self, state: FileState) -> ReloadOutcome | None:
        """The outcome; None when the file changed during the attempt, so that it will be tried again."""
        try:
            return self._load(state)
        except ModelRefused as error:
            if FileState.of(self._path) != state:
                return None
            if _could_not_be_read(error):
                return self._try_later(state, error)
            log.error("the new model is refused, %s: %s", self._still, error)
            return "refused"
        except Exception as error:  # no error may end the watch or the service
            return self._try_later(state, error)

    def _load(self, state: FileState) -> ReloadOutcome | None:
        classifier = self._open(self._path)
        if FileState.of(self._path) != state:
            return None
        if _identity(classifier) == self._served:
            return "unchanged"
        self._swap(classifier)
        return "swapped"

    def _try_later(self, state: FileState, error: Exception) -> ReloadOutcome:
        """Log an error once, not at every attempt."""
        repeated = state == self._failed
        self._pause_s = min(2 * self._pause_s, LONGEST_PAUSE_S) if repeated else FIRST_PAUSE_S
        self._not_before = monotonic() + self._pause_s
        if not repeated or repr(error) != self._last_error:
            log.error("the new model could not be loaded, %s, and it is tried again", self._still, exc_info=error)
        self._failed, self._last_error = state, repr(error)
        return "failed"

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


def _could_not_be_read(error: ModelRefused) -> bool:
    """Whether this says nothing about the file's content. A missing signature is a verdict."""
    cause = error.__cause__
    if isinstance(cause, SignatureRefused):
        cause = cause.__cause__
    return isinstance(cause, OSError) and not isinstance(cause, FileNotFoundError)


def _identity(classifier: Classifier) -> tuple[str, str | None]:
    """What differs where a model, or the training images beside it, are others."""
    return classifier.digest, classifier.index.state if classifier.index else None
