"""Everything in a folder of runs and in caches that holds a person's images, and how it is taken away."""

import os
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np

from serving.contract.files.names import NEIGHBOURS
from serving.contract.formats.image_header import IMAGE_EXTENSIONS
from training.data import duplicates
from training.data.sources.source import Split
from training.engine import runs
from training.forgetting import binaries, caches, pages, texts
from training.forgetting.caches import CacheEntry
from training.forgetting.dependents import Dependent, dependents, of_other_data
from training.forgetting.names import Names
from training.forgetting.pages import UnwantedParts
from training.forgetting.person import Person
from training.forgetting.texts import Counts
from training.storage import write_atomically

AUGMENTED = "augmented.png"
"""The picture of augmented training images, in the folder of a report's figures."""
EVENTS = "events.out.tfevents."
TEXTS = {".csv", ".html", ".json", ".jsonl", ".log", ".md", ".svg", ".txt", ".yaml", ".yml"}
ARCHIVE = ".zip"
NOTHING = Names(())


@dataclass(frozen=True, kw_only=True)
class Trace:
    """What a file holds of the person."""

    path: Path
    what: Counts
    erase: Callable[[], None] | None
    """Takes it away, and raises OSError; None where the file is none of this program's, so that nothing is changed."""


@dataclass(frozen=True, kw_only=True)
class Scan:
    """What was searched, and what was found."""

    traces: list[Trace]
    entries: list[CacheEntry]
    runs: list[Path]
    """All runs that were searched."""
    dependents: list[Dependent]
    """Those that had the images."""
    files: int
    caches: int
    """Number of entries."""
    pictures: int
    """Different photographs in pages and files."""

    @property
    def found(self) -> bool:
        """Whether a file or an entry holds anything."""
        return bool(self.traces or self.entries)

    @property
    def dependent(self) -> list[Path]:
        """The runs whose weights depend on the images."""
        return [one.run for one in self.dependents if one.depends]

    @property
    def searched(self) -> str:
        """What was searched, as a part of a sentence."""
        return f"{self.files:,} files, {self.pictures:,} pictures in them, {self.caches:,} cache entries"


@dataclass
class _Places:
    """Folders and files below some roots."""

    folders: list[Path] = field(default_factory=list)
    files: list[Path] = field(default_factory=list)
    entries: list[Path] = field(default_factory=list)


def scan(out: Path, cache: Path, person: Person, before: Scan | None = None) -> Scan:
    """Search a folder of runs and a cache. Raises ConfigError, OSError.

    With a search `before`, the runs that had the images are those of then: what shows it may be erased by now.
    """
    places = _places([out, cache])
    run_folders = [folder for folder in places.folders if (folder / runs.CONFIG).is_file()]
    known = dependents(run_folders, person) if before is None else before.dependents
    search = _Search(out=out, person=person, splits={one.run: one.splits for one in known})
    search.compare(places.files)
    traces = [trace for path in places.files if (trace := search.trace(path)) is not None]
    return Scan(
        traces=traces,
        entries=caches.held(places.entries, person),
        runs=run_folders,
        dependents=known,
        files=len(places.files),
        caches=len(places.entries),
        pictures=search.pictures,
    )


def _places(roots: list[Path]) -> _Places:
    """What is below the roots, once each; links are not followed."""
    places, seen = _Places(), set[Path]()
    for root in roots:
        for name, folders, files in os.walk(root):
            folder = Path(name)
            real = folder.resolve()
            if real in seen:
                folders.clear()
                continue
            seen.add(real)
            if caches.is_entry(folder):
                folders.clear()
                places.entries.append(folder)
                continue
            places.folders.append(folder)
            places.files += [path for path in (folder / file for file in files) if not path.is_symlink()]
    places.files.sort()
    return places


@dataclass
class _Search:
    """The search of files, by names and by pictures."""

    out: Path
    person: Person
    splits: dict[Path, frozenset[Split]]
    """By run: the splits that held the person's images."""
    pictures: int = 0
    _shown: frozenset[str] = frozenset()
    """Pictures of pages that show the person's."""
    _images: frozenset[Path] = frozenset()
    """Files that do."""

    def __post_init__(self) -> None:
        self._names = self.person.names
        self._other: dict[Path, bool] = {}

    def compare(self, files: list[Path]) -> None:
        """Compare all photographs in pages, and all files of images, with the person's, by the audit's rule."""
        fingerprints: dict[str | Path, np.ndarray] = {}
        for path in files:
            for page in _pages(path):
                for picture in pages.pictures(page):
                    if picture not in fingerprints and (known := pages.fingerprint(picture)) is not None:
                        fingerprints[picture] = known
            if (
                path.suffix.lower() in IMAGE_EXTENSIONS
                and (known := pages.fingerprint_of(path.read_bytes())) is not None
            ):
                fingerprints[path] = known
        self.pictures = len(fingerprints)
        if not fingerprints:
            return
        # Equal pictures in many pages would take all places among the nearest.
        known, numbers = np.unique(np.stack([*fingerprints.values()]), return_inverse=True)
        pairs = duplicates.copies(self.person.fingerprints(), known, self.person.least_similarity)
        same = {pair.second for pair in pairs}
        shown = [place for place, number in zip(fingerprints, numbers.ravel(), strict=True) if number in same]
        self._shown = frozenset(place for place in shown if isinstance(place, str))
        self._images = frozenset(place for place in shown if isinstance(place, Path))

    def trace(self, path: Path) -> Trace | None:
        """What a file holds of the person; None for nothing. Raises OSError."""
        content, what = self._without(path)
        what = +what
        if not what:
            return None
        foreign = content is None and path.suffix.lower() not in (*IMAGE_EXTENSIONS, ARCHIVE)
        return Trace(path=path, what=what, erase=None if foreign else partial(self._erase, path))

    def _erase(self, path: Path) -> None:
        content, _ = self._without(path)
        if content is None:
            path.unlink()
        else:
            write_atomically(path, lambda file: file.write(content))

    def _without(self, path: Path) -> tuple[bytes | None, Counts]:
        """The file without what it holds of the person, None where nothing of it can stay; and what that is."""
        names = NOTHING if self._is_of_other_data(path.parent) else self._names
        held = self._held(path.parent)
        if path in self._images or (path.name == AUGMENTED and "train" in held):
            return None, Counts(pictures=1)
        if path.suffix == ARCHIVE:
            return None, self._in_archive(path, names, held)
        content = path.read_bytes()
        if path.name.endswith(NEIGHBOURS):
            return binaries.without_rows(content, path, names, self.person)
        if path.name.startswith(EVENTS):
            return binaries.without_pictures(content, held)
        text = content.decode(errors="surrogateescape")
        if path.suffix == ".html":
            unwanted = UnwantedParts(names=names, pictures=self._shown, sheet="train" in held, examples=bool(held))
            text, what = pages.without(text, unwanted)
        elif path.suffix in TEXTS:
            text, what = texts.without_names(path.suffix, text, names)
        else:
            return None, Counts(names=int(text in names))
        return text.encode(errors="surrogateescape"), what

    def _in_archive(self, path: Path, names: Names, held: frozenset[Split]) -> Counts:
        """Files in an archive that have a name or a picture; a dossier is made again from its run."""
        unwanted = UnwantedParts(names=names, pictures=self._shown, sheet="train" in held, examples=False)
        return Counts({"files in it": sum(bool(+pages.without(text, unwanted)[1]) for text in _texts_in(path))})

    def _held(self, folder: Path) -> frozenset[Split]:
        """The splits with the person's images of the run that a folder belongs to."""
        return next((self.splits[place] for place in (folder, *folder.parents) if place in self.splits), frozenset())

    def _is_of_other_data(self, folder: Path) -> bool:
        if folder not in self._other:
            self._other[folder] = of_other_data(folder, self.out, self.person)
        return self._other[folder]


def _pages(path: Path) -> list[str]:
    """The page that a file is, and those in an archive."""
    if path.suffix == ARCHIVE:
        return _texts_in(path)
    return [path.read_bytes().decode(errors="surrogateescape")] if path.suffix == ".html" else []


def _texts_in(path: Path) -> list[str]:
    """The files in an archive."""
    try:
        with zipfile.ZipFile(path) as archive:
            return [archive.read(name).decode(errors="surrogateescape") for name in archive.namelist()]
    except zipfile.BadZipFile:
        return []
