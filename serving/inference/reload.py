"""Another model as soon as its file changes: opened and proved beside the one that answers, then put in its place.

The file is looked at, not listened for: inotify says nothing of a changed symlink further up the path, which is how
`runs/latest` and the volumes of Kubernetes change, nor of writes by another machine on a shared volume.
"""

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from serving.contract.model import Classifier, ModelRefused

log = logging.getLogger("bentoml.twinlens")

Outcome = Literal["swapped", "unchanged", "refused", "failed"]


@dataclass(frozen=True)
class FileState:
    """Another one as soon as the path leads to another file, or the file is written to."""

    device: int
    inode: int
    size: int
    modified_ns: int

    @classmethod
    def of(cls, path: Path) -> "FileState | None":
        """Follows symlinks; None where there is no file that can be reached."""
        try:
            status = path.stat()
        except OSError:
            return None
        return cls(status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)


class Reloader:
    """Keeps the model that answers in step with the file at `path`.

    `open_model` opens and proves a file or raises ModelRefused; `serve` lets a model answer from then on; `observe` is
    told how each attempt ended. Whatever goes wrong, the model that answers goes on, and a file that was refused is
    not tried again until it changes.
    """

    def __init__(
        self,
        path: Path,
        open_model: Callable[[Path], Classifier],
        serve: Callable[[Classifier], None],
        observe: Callable[[Outcome], None] = lambda outcome: None,
    ) -> None:
        self._path = path
        self._open = open_model
        self._serve = serve
        self._observe = observe
        self._tried: FileState | None = None
        self._seen: FileState | None = None
        self._digest: str | None = None

    def start(self) -> None:
        """Serve the file that is there, if there is one. Raises ModelRefused."""
        self._tried = self._seen = FileState.of(self._path)
        if self._tried is not None:
            self._swap(self._open(self._path))

    async def watch(self, every_s: float) -> None:
        """Look at the file every so many seconds, for ever; the event loop is never held up by it."""
        while True:
            await asyncio.sleep(every_s)
            await asyncio.to_thread(self.look)

    def look(self) -> None:
        """Try the file if it is another one than at the last attempt, and the same as at the last look.

        So a file that is being written is left alone until the writing pauses.
        """
        found, before = FileState.of(self._path), self._seen
        self._seen = found
        if found is None:
            if before is not None:
                log.warning("%s is no longer there; the model loaded from it goes on answering", self._path)
            return
        if found != before or found == self._tried:
            return
        self._tried = found
        outcome = self._try(found)
        if outcome is not None:
            self._observe(outcome)

    def _try(self, found: FileState) -> Outcome | None:
        """How the attempt ended; None when the file changed under it, so that it will be tried again."""
        try:
            classifier = self._open(self._path)
        except ModelRefused as error:
            log.error("the new model is refused, %s: %s", self._still, error)
            return "refused"
        except Exception:  # whatever it is, it must end neither the watch nor the service
            log.exception("the new model could not be opened, %s", self._still)
            return "failed"
        if FileState.of(self._path) != found:
            return None
        if classifier.digest == self._digest:
            return "unchanged"
        self._swap(classifier)
        return "swapped"

    @property
    def _still(self) -> str:
        return "no model answers yet" if self._digest is None else "the one before it goes on answering"

    def _swap(self, classifier: Classifier) -> None:
        self._serve(classifier)
        self._digest = classifier.digest
        log.info(
            "model %s %s (%s) on %s answers: card checked, %d goldens replayed",
            classifier.card.name,
            classifier.card.version,
            self._path,
            classifier.provider,
            len(classifier.card.goldens),
        )
