"""The readable images of a source, with their labels, groups and splits."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Int64

from serving.contract.decode import Decoded
from serving.contract.formats.depth import SHIFTED, Depth
from training.data.duplicates import Duplicates
from training.data.inspection.contents import Contents
from training.data.inspection.image_file import ARRAY, ImageFile, Raw, to_rgb
from training.data.sources.source import Source, Split, shortened


@dataclass(frozen=True, kw_only=True)
class ImageSet:
    """The readable images of a source: all lists have one entry for each, in the order of the source."""

    name: str
    identity: str
    """`Source.identity`."""
    keys: list[str]
    labels: Int64[np.ndarray, " images"]
    """Index in `classes`."""
    classes: tuple[str, ...]
    groups: list[str]
    """Images of one group must not be in two splits. An empty string is no group."""
    source_splits: list[Split | None]
    """The split that the source assigns; None where it assigns none."""
    files: list[ImageFile]
    duplicates: Duplicates
    raw: Callable[[int], Raw]
    """Read image i again, as it is stored."""
    depth: Depth = SHIFTED
    """How `read` shows values of more than 8 bits."""
    columns: dict[str, list[str]] = field(default_factory=dict)
    """`Source.columns`."""
    unreadable: dict[str, str] = field(default_factory=dict)
    """Key of each image that cannot be read, and the reason."""
    ignored: list[str] = field(default_factory=list)
    """`Source.ignored`."""
    notes: list[str] = field(default_factory=list)
    """`Source.notes`, and classes of which no image can be read."""

    def read(self, index: int) -> Decoded:
        """Read an image again, decoded to RGB and not resized. Raises ImageError, OSError."""
        return to_rgb(self.raw(index), self.depth)

    @property
    def formats(self) -> tuple[str, ...]:
        """The formats of the readable files, sorted; empty where the images are no files."""
        return tuple(sorted({file.format for file in self.files} - {ARRAY}))

    @property
    def deep(self) -> Int64[np.ndarray, " _"]:
        """Indices of the images of more than 8 bits."""
        return np.flatnonzero([file.bits > 8 for file in self.files])


def image_set(source: Source, contents: Contents, classes: Sequence[str] | None = None) -> ImageSet:
    """Put together the labels of a source and what its files hold.

    `classes` gives the order of the classes and must hold every label; None: sorted, numbers first.
    """
    positions = contents.positions
    names = [source.labels[i] for i in positions]
    known = ordered(names) if classes is None else tuple(classes)
    index = {name: label for label, name in enumerate(known)}
    return ImageSet(
        name=source.name,
        identity=source.identity,
        keys=[source.keys[i] for i in positions],
        labels=np.array([index[name] for name in names], np.int64),
        classes=known,
        groups=[source.groups[i] for i in positions],
        source_splits=[source.splits[i] for i in positions],
        files=contents.files,
        duplicates=contents.duplicates,
        raw=lambda i: source.read(positions[i]),
        columns={name: [values[i] for i in positions] for name, values in source.columns.items()},
        unreadable=dict(sorted((source.keys[i], reason) for i, reason in contents.unreadable.items())),
        ignored=source.ignored,
        notes=[*source.notes, *_lost_classes(source, names)],
    )


def _lost_classes(source: Source, remaining: Sequence[str]) -> list[str]:
    lost = ordered(set(source.labels) - set(remaining))
    return [f"classes of which no image can be read are left out: {shortened(lost)}."] if lost else []


def ordered(labels: Iterable[str]) -> tuple[str, ...]:
    """The different labels: numbers first, as numbers, then words."""
    return tuple(sorted(set(labels), key=_natural))


def _natural(label: str) -> tuple[bool, int, str]:
    """Sort numbers as numbers, before words."""
    return (not label.isdecimal(), int(label) if label.isdecimal() else 0, label)
