"""A folder as it is walked: each real folder once, without hidden folders and without this project's own output."""

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from serving.contract.formats.image_header import IMAGE_EXTENSIONS
from serving.contract.listing import is_hidden
from training.data.sources.source import shortened

OWN_FILES = (
    ("config.yaml", "checkpoints"),  # a run
    ("study.yaml", "runs"),
    ("audit.html", "audit.json"),
    ("evaluation.html", "evaluation.json"),
    ("seal.json",),  # an entry of the cache
)
"""What is in a folder that this project has written."""

IMPORTED_EXTENSIONS = (".heic", ".heif", ".hif", ".avif", ".jp2", ".j2k", ".jpx", ".jpf", ".dcm", ".dicom")
"""Extensions of files that `python -m training import` makes readable, in lower case."""

IMPORT_RECORD = "import.csv"
"""In a folder that `python -m training import` has made: what it did with each file."""

Real = tuple[int, int]


@dataclass
class Tree:
    """Walks below `root`, and remembers what it left out. Raises OSError for a folder that cannot be read."""

    root: Path
    outputs: Sequence[Path]
    """Folders that this project writes to; one that is `root` or holds it is not left out."""
    hidden: dict[str, int] = field(default_factory=dict)
    """Hidden folders and files, by path, with the number of images in them."""
    own: list[str] = field(default_factory=list)
    """Folders of this project's output."""
    repeated_links: list[str] = field(default_factory=list)
    """Links to a folder that was walked already, or that holds `root`."""

    def __post_init__(self) -> None:
        real = self.root.resolve()
        self._walked = {_real(folder) for folder in (real, *real.parents)}
        self._outputs = {_real(path) for path in self.outputs if path.is_dir()} - self._walked

    def folders(self, folder: Path) -> list[Path]:
        """The folders in `folder` that may hold data, sorted by name. Each is given once, unless by another path."""
        return [entry for entry in self._entries(folder) if entry.is_dir() and self._take(entry)]

    def files(self, folder: Path, *, deep: bool) -> Iterator[Path]:
        """The files in `folder`, with `deep` those below it at any depth, in a fixed order and without hidden ones."""
        below = []
        for entry in self._entries(folder):
            if not entry.is_dir():
                yield entry
            elif deep and self._take(entry):
                below.append(entry)
        for entry in below:
            yield from self.files(entry, deep=True)

    def notes(self) -> list[str]:
        """A sentence for each kind of thing that was left out."""
        images = {path: count for path, count in sorted(self.hidden.items()) if count}
        sentences = []
        if images:
            shown = shortened([f"{path} ({count:,})" for path, count in images.items()])
            sentences.append(f"hidden files and folders with {sum(images.values()):,} images are left out: {shown}.")
        if self.own:
            sentences.append(f"folders that runs have written are no data: {shortened(sorted(self.own))}.")
        if self.repeated_links:
            sentences.append(
                f"each folder is read once, not again by these links: {shortened(sorted(self.repeated_links))}."
            )
        return sentences

    def name(self, path: Path) -> str:
        """The path below `root`."""
        return str(path.relative_to(self.root))

    def _entries(self, folder: Path) -> list[Path]:
        visible = []
        for entry in sorted(folder.iterdir()):
            if is_hidden(entry.name):
                self.hidden[self.name(entry)] = _images_below(entry)
            else:
                visible.append(entry)
        return visible

    def _take(self, folder: Path) -> bool:
        real = _real(folder)
        if real in self._outputs or any(all((folder / name).exists() for name in names) for names in OWN_FILES):
            self.own.append(self.name(folder))
            return False
        if real in self._walked:
            self.repeated_links.append(self.name(folder))
            return False
        self._walked.add(real)
        return True


def is_image(path: Path) -> bool:
    """Whether the name ends as that of an accepted format."""
    return path.suffix.lower() in IMAGE_EXTENSIONS


def import_hint(root: Path, paths: Iterable[Path]) -> str:
    """A sentence, after a blank, where some of these files can be imported; else nothing."""
    importable = any(path.suffix.lower() in IMPORTED_EXTENSIONS for path in paths)
    return (
        f" `python -m training import {root} --out FOLDER` makes a copy in which they are read." if importable else ""
    )


def _real(folder: Path) -> Real:
    status = folder.stat()
    return status.st_dev, status.st_ino


def _images_below(path: Path) -> int:
    """Images in a hidden folder, or 1 for a hidden file that is named as an image; links are not followed."""
    if path.is_symlink() or not path.is_dir():
        return int(is_image(path))
    return sum(is_image(Path(name)) for _, _, names in os.walk(path) for name in names)
