"""Images that a CSV manifest lists: columns path and label, perhaps split and group, and others that describe them."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from serving.contract.listing import ManifestError, clean, is_file, on_disk, read_manifest
from training.data.sources.source import SPLITS, Row, Source, of_files, refuse, splits_of
from training.errors import DataError

COLUMNS = ("path", "label", "split", "group")
"""Columns with a meaning of their own; all others describe the images."""


class ManifestLine(NamedTuple):
    """One image of a manifest."""

    number: int
    row: Row
    values: dict[str, str]
    """By column, as they are written."""

    @property
    def place(self) -> str:
        """For messages."""
        return f"line {self.number}: {self.row.path}"


def manifest(path: Path) -> Source:
    """The images of a manifest; paths are relative to its folder. Raises DataError, OSError."""
    root = path.parent
    lines = [line._replace(row=line.row._replace(path=on_disk(root, line.row.path))) for line in listed(path)]
    refuse_absent(path, root.resolve(), [line for line in lines if not is_file(root / line.row.path)])
    _refuse_twice(path, lines)
    extra = [name for name in lines[0].values if name and name not in COLUMNS]
    columns = {name: [clean(line.values[name]) for line in lines] for name in extra}
    notes = _notes([line.row.label for line in lines])
    source = of_files(root, [line.row for line in lines], name=str(path), ignored=(), notes=notes)
    return replace(source, columns=columns)


def listed(path: Path) -> list[ManifestLine]:
    """The lines, with paths as they are written; no image has to be there. Raises DataError, OSError."""
    try:
        rows = list(read_manifest(path, ("path", "label")))
    except ManifestError as error:
        raise DataError(str(error)) from error
    if not rows:
        raise DataError(f"{path}: the manifest has no rows")
    words = [clean(row.get("split", "")).lower() for _, row in rows]
    splits = splits_of(words)
    lines = [
        ManifestLine(number, Row(row["path"], clean(row["label"]), clean(row.get("group", "")), splits.get(word)), row)
        for (number, row), word in zip(rows, words, strict=True)
    ]
    refuse(path, "rows without a label", (line.place for line in lines if not line.row.label))
    unknown = sorted(set(words) - splits.keys() - {""})
    refuse(path, f"splits other than {', '.join(SPLITS)}", unknown)
    _refuse_twice(path, lines)
    return lines


def _notes(labels: Sequence[str]) -> tuple[str, ...]:
    """A sentence on labels that are several of the others at once, as in tables of several labels an image."""
    classes = set(labels)
    combined = [
        label
        for label in labels
        if any(mark in label and classes.intersection(map(clean, label.split(mark))) for mark in "|;,+")
    ]
    if not combined:
        return ()
    return (
        f"{len(combined):,} of {len(labels):,} labels look like several at once, such as {combined[0]!r}: an image has "
        "one label here, and each combination is learned as a class of its own.",
    )


def refuse_absent(path: Path | str, folder: Path | str, lines: Sequence[ManifestLine]) -> None:
    """Raise DataError that lists the images that are not below the folder, if there are any."""
    hint = "; folders are parted by /, not by \\" if any("\\" in line.row.path for line in lines) else ""
    refuse(path, f"images that do not exist in {folder}{hint}", (line.place for line in lines))


def _refuse_twice(path: Path, lines: Sequence[ManifestLine]) -> None:
    counts = Counter(line.row.path for line in lines)
    refuse(path, "paths that appear more than once", (name for name, count in counts.items() if count > 1))
