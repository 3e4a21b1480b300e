"""Data in an object store: copied once into the cache, then read as any other. Later runs fetch only what changed."""

import hashlib
import json
import posixpath
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from filelock import FileLock

from serving.contract.objects import Store, StoreUnusable, Url, Version
from training.data.sources.manifest import listed, refuse_absent
from training.data.sources.source import plain, refuse
from training.errors import ConfigError, DataError
from training.storage import write_atomically

RECORD = "versions.json"
"""File beside the copy: the version of each object that was copied."""
AT_ONCE = 16
"""Objects that are fetched at the same time: of small ones, most of the time is waiting."""
OBJECTS_A_RECORD = 1000
"""After this number of objects the record is written: a run that is killed has lost no more."""
PASSES = 3
"""How often the store is listed: the last listing must be what was copied."""


def local_copy(url: Url, cache: Path | None) -> Path:
    """The local copy of a folder, of a .csv manifest and the images that it lists, or of an .npz file.

    What was removed from the store is removed from the copy. Other processes that need it wait. Raises ConfigError
    without a cache or the store's library, DataError where there is nothing or a name cannot be a file's, OSError.
    """
    if cache is None:
        raise ConfigError(f"--cache: expected a folder in which to keep a copy of {url}")
    try:
        place = cache / f"objects-{hashlib.sha256(url.text.encode()).hexdigest()[:16]}"
        copy = Copy.of(url, place)
    except StoreUnusable as error:
        raise ConfigError(f"--data {error}") from error
    place.mkdir(parents=True, exist_ok=True)
    with FileLock(place / ".lock"):
        copy.update()
    return copy.path


@dataclass(frozen=True)
class Copy:
    """A copy of what is at a URL, in a folder of its own."""

    url: Url
    folder: Store
    """The store's folder that the copied paths are relative to."""
    root: Path
    """The local folder that they are relative to."""
    path: Path
    """What is read: `root`, or a file in it."""

    @classmethod
    def of(cls, url: Url, place: Path) -> "Copy":
        """Raises StoreUnusable."""
        name = url.name or "data"
        if _is_file(url):
            return cls(url, Store(url.folder), place / "data", place / "data" / name)
        return cls(url, Store(url), place / name, place / name)

    def update(self) -> None:
        """Make the copy what the store holds. Raises DataError, OSError."""
        record = self.root.parent / RECORD
        for last in (False,) * (PASSES - 1) + (True,):
            wanted = self._wanted()
            held = _read(record)
            current = {path for path in wanted if held.get(path) == wanted[path] and (self.root / path).is_file()}
            changed = [path for path in wanted if path not in current]
            self._remove_others(wanted)
            if not changed:
                return
            print(f"data   {self.url}: {len(changed):,} of {len(wanted):,} objects are fetched", flush=True)
            held = {path: wanted[path] for path in current}
            failed: list[OSError] = []
            for start in range(0, len(changed), OBJECTS_A_RECORD):
                fetched, faults = self._fetch(changed[start : start + OBJECTS_A_RECORD])
                failed += faults
                held |= {path: wanted[path] for path in fetched}
                write_atomically(record, partial(_write, held))
                if not fetched:  # as without the right to read; the others would fail one by one, too
                    break
            if failed and last:
                raise failed[0]
        if any(_read(record).get(path) != version for path, version in self._wanted().items()):
            raise OSError(f"{self.url}: changes while it is read; start again when it is complete")

    def _wanted(self) -> dict[str, Version]:
        """The objects to copy, by their path below the root."""
        if not _is_file(self.url):
            wanted = self.folder.versions()
            if not wanted:
                raise DataError(f"{self.url}: there is no such folder, .csv manifest or .npz file")
        elif self.url.name.lower().endswith(".npz"):
            wanted = {self.url.name: Store(self.url).version()}
        else:
            wanted = self._of_manifest()
        refuse(str(self.url), "names that no file can have", sorted(_unusable(wanted)))
        return wanted

    def _of_manifest(self) -> dict[str, Version]:
        """The manifest, fetched to know the others, and the images that it lists. Raises DataError, OSError."""
        Store(self.url).download(self.path)
        forms = [(line, {plain(line.row.path), plain(line.row.path.strip())}) for line in listed(self.path)]
        versions = self.folder.versions()
        plain_names = {path: plain(path) for path in versions if path == posixpath.normpath(path)}
        there = set(plain_names.values())
        refuse_absent(str(self.url), str(self.url.folder), [line for line, names in forms if there.isdisjoint(names)])
        wanted = {plain(self.url.name)} | {name for _, names in forms for name in names}
        return {path: versions[path] for path, name in plain_names.items() if name in wanted}

    def _fetch(self, paths: Sequence[str]) -> tuple[list[str], list[OSError]]:
        """Copy these objects; which are there now, and what went wrong with others."""
        with ThreadPoolExecutor(AT_ONCE) as pool:
            faults = list(pool.map(self._try, paths))
        done = [path for path, fault in zip(paths, faults, strict=True) if fault is None]
        return done, [fault for fault in faults if fault is not None]

    def _try(self, path: str) -> OSError | None:
        try:
            if path == self.url.name and _is_file(self.url):
                Store(self.url).download(self.root / path)  # with what the query of its own URL asks
            else:
                self.folder.download(self.root / path, path)
        except OSError as error:
            return error
        return None

    def _remove_others(self, wanted: dict[str, Version]) -> None:
        """Remove files that are no longer in the store, and folders without any."""
        for path in sorted(self.root.rglob("*"), reverse=True):  # what is in a folder before the folder
            if not path.is_dir():
                if str(path.relative_to(self.root)) not in wanted:
                    path.unlink()
            elif not any(path.iterdir()):
                path.rmdir()


def _is_file(url: Url) -> bool:
    return url.name.lower().endswith((".csv", ".npz"))


def _unusable(paths: Iterable[str]) -> set[str]:
    """Paths that would leave the folder, that two objects would share, or that are both a file and a folder."""
    paths = set(paths)
    folders = {str(parent) for path in paths for parent in PurePosixPath(path).parents}
    return {path for path in paths if {"", ".", ".."} & set(path.split("/")) or "\0" in path or path in folders}


def _write(held: dict[str, Version], file: BinaryIO) -> None:
    file.write(json.dumps(held).encode())


def _read(record: Path) -> dict[str, Version]:
    try:
        held: dict[str, Version] = json.loads(record.read_bytes())
    except (OSError, ValueError):
        return {}
    return held
