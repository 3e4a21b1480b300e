"""A local copy of a model that is in an object store, fetched again when the object changes.

The copy is an ordinary file: the service opens, checks and reloads it as any other.
"""

import hashlib
import json
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from filelock import FileLock

from serving.contract.files.names import neighbours_of, signature_of
from serving.contract.objects import Store, StoreUnusable, Url, Version
from serving.metrics import FetchOutcome
from serving.settings import Settings

log = logging.getLogger("bentoml.twinlens")

RECORD = "versions.json"
"""File beside the copies: of which version each is, and the SHA-256 of what was fetched."""


class Mirror:
    """Keeps `file` as the object at `url` is, and with `signed` the object's signature beside it.

    With `training_images` their index is kept, too. Several processes may share the file: one fetches, the others find
    its copy. A copy is whole, and of one version: an object that changes while it is read is not taken.
    """

    def __init__(self, url: Url, file: Path, *, signed: bool = False, training_images: bool = False) -> None:
        """`file` is in a folder of its own. Raises StoreUnusable, also where that folder cannot be made."""
        self.url = url
        self.file = file
        model = Store(url)  # first: what is wrong with the URL is said of this one
        sidecars = [neighbours_of(file)] * training_images + [signature_of(file)] * signed
        self._stores = {sidecar: Store(url.beside(sidecar.name)) for sidecar in sidecars} | {file: model}
        self._folder = file.parent
        self._intact = False
        self._last_error = ""
        _make_private(self._folder)

    def fetch(self) -> FetchOutcome:
        """Fetch the object if it is another version than the copy. Raises OSError."""
        if self._holds(self._versions()):
            return "unchanged"
        with FileLock(self._folder / ".lock"):
            wanted = self._versions()
            if self._holds(wanted):  # another process has fetched it
                return "unchanged"
            self._fetch(wanted)
        return "fetched"

    def refresh(self) -> FetchOutcome:
        """As `fetch`, but log what fails."""
        try:
            outcome = self.fetch()
        except FileNotFoundError as error:
            return self._fails("missing", error)
        except OSError as error:
            return self._fails("failed", error)
        if outcome == "fetched" or self._last_error:
            log.info("%s: %s", self.url, f"fetched to {self.file}" if outcome == "fetched" else "unchanged")
        self._last_error = ""
        return outcome

    def refresh_within(self, seconds: float | None) -> None:
        """As `refresh`, but return after `seconds` at the latest; None: without a limit.

        In a daemon thread, which continues meanwhile and does not delay the end of the process.
        """
        refreshing = threading.Thread(target=self.refresh, name="mirror", daemon=True)
        refreshing.start()
        refreshing.join(seconds)
        if refreshing.is_alive():
            log.warning("%s: not fetched within %g s", self.url, seconds)

    def watch(self, every_s: float, observe: Callable[[FetchOutcome], None]) -> None:
        """Refresh now and every `every_s` seconds, without end; `observe` gets each outcome.

        In a daemon thread, because a store that does not answer must not delay the end of the process.
        """

        def poll() -> None:
            while True:
                observe(self.refresh())
                time.sleep(every_s)

        threading.Thread(target=poll, name="mirror", daemon=True).start()

    def _versions(self) -> dict[str, Version]:
        """The versions of the objects by the names of their files. Raises FileNotFoundError if there is no model."""
        versions = {}
        for file, store in reversed(self._stores.items()):  # the model first: while a store fails, one object is named
            try:
                versions[file.name] = store.version()
            except FileNotFoundError:
                if file == self.file:
                    raise
            except OSError as error:
                # S3 says 403 of a missing object to those who may not list; a model answers without training images.
                if file != neighbours_of(self.file) or not isinstance(error.__cause__, PermissionError):
                    raise
        return versions

    def _holds(self, wanted: dict[str, Version]) -> bool:
        """Whether the copies are of these versions and, at the first time, as they were fetched."""
        try:
            record = json.loads((self._folder / RECORD).read_bytes())
            held: dict[str, Version] = record["versions"]
            paths = [self._folder / name for name in held]
            same = held == wanted and all(path.exists() for path in paths)
            if same and not self._intact:
                same = {path.name: _digest(path) for path in paths} == record["digests"]
                self._intact = same
        except (OSError, ValueError, KeyError, TypeError):
            return False
        return same

    def _fetch(self, wanted: dict[str, Version]) -> None:
        for partial in self._folder.glob(".*.partial"):  # by a process that was killed
            partial.unlink()
        fetched = {file: file.with_name(f".{file.name}.new") for file in self._stores if file.name in wanted}
        try:
            for file, new in fetched.items():
                self._stores[file].download(new)
            if self._versions() != wanted:
                raise OSError(f"{self.url}: changed while it was read; it is read again at the next look")
            digests = {file.name: _digest(new) for file, new in fetched.items()}
            (self._folder / RECORD).unlink(missing_ok=True)
            for file in self._stores:
                if file in fetched:
                    fetched[file].replace(file)
                else:
                    file.unlink(missing_ok=True)
        finally:
            for new in fetched.values():
                new.unlink(missing_ok=True)
        record = self._folder / f".{RECORD}"
        record.write_text(json.dumps({"versions": wanted, "digests": digests}))
        record.replace(self._folder / RECORD)
        self._intact = True

    def _fails(self, outcome: FetchOutcome, error: OSError) -> FetchOutcome:
        """Log an error once, not at every poll."""
        if str(error) != self._last_error:
            self._last_error = str(error)
            still = "the last copy is used" if self.file.exists() else "there is no copy yet"
            log.warning("%s; %s, and it is tried again", error, still)
        return outcome


def mirror_of(settings: Settings, *, training_images: bool = False) -> Mirror | None:
    """What keeps `settings.file` as the object is; None where the model is a file. Raises StoreUnusable.

    A web server's address may hold a signature that is of one file alone, so no training images are fetched there.
    """
    url = settings.model
    if isinstance(url, Path):
        return None
    wanted = training_images and not url.is_http
    return Mirror(url, settings.file, signed=settings.public_key is not None, training_images=wanted)


@contextmanager
def fetched_once(settings: Settings) -> Iterator[Settings]:
    """Settings whose `file` does not change: a model at a URL is fetched into a temporary folder.

    Raises StoreUnusable, OSError.
    """
    with TemporaryDirectory(prefix="twinlens-") as folder:
        fetched = settings.model_copy(update={"cache": Path(folder)})
        if mirror := mirror_of(fetched):
            mirror.fetch()
        yield fetched


def _make_private(folder: Path) -> None:
    """Make a folder that no other user can change, because a model decides answers. Raises StoreUnusable."""
    elsewhere = "TWINLENS_CACHE names another place"
    try:
        folder.mkdir(parents=True, mode=0o700, exist_ok=True)
        foreign = [place for place in (folder.parent, folder) if place.stat().st_uid not in (0, os.getuid())]
    except OSError as error:
        raise StoreUnusable(f"{folder}: cannot be made ({error.strerror}); {elsewhere}") from error
    if foreign:
        raise StoreUnusable(f"{foreign[0]} belongs to another user, who could change the model; {elsewhere}")


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
