"""Images that a CSV manifest lists: columns path and label, perhaps split and group, and others that describe them."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

from serving.contract.listing import ManifestError, clean, is_file, on_disk, read_manifest
from training.data.sources.source import SPLITS, Row, Source, of_files, refuse, splits_of
from training.errors import DataError

COLUMNS = ("path", "label", "split", "group")
"""Columns with a meaning of their own; all others describe the images."""


def manifest(path: Path) -> Source:
    """The images of a manifest; paths are relative to its folder. Raises DataError, OSError."""
    root = path.parent
    try:
        lines = list(read_manifest(path, ("path", "label")))
    except ManifestError as error:
        raise DataError(str(error)) from error
    if not lines:
        raise DataError(f"{path}: the manifest has no rows")
    words = {line: clean(row.get("split", "")).lower() for line, row in lines}
    splits = splits_of(words.values())
    rows = [
        Row(
            path=on_disk(root, row["path"]),
            label=clean(row["label"]),
            group=clean(row.get("group", "")),
            split=splits.get(words[line]),
        )
        for line, row in lines
    ]
    places = [(row, f"line {line}: {row.path}") for (line, _), row in zip(lines, rows, strict=True)]
    refuse(path, "rows without a label", (place for row, place in places if not row.label))
    absent = [place for row, place in places if not is_file(root / row.path)]
    hint = "; folders are parted by /, not by \\" if any("\\" in place for place in absent) else ""
    refuse(path, f"images that do not exist in {root.resolve()}{hint}", absent)
    refuse(path, "paths that appear more than once", (p for p, n in Counter(row.path for row in rows).items() if n > 1))
    unknown = sorted(set(words.values()) - splits.keys() - {""})
    refuse(path, f"splits other than {', '.join(SPLITS)}", unknown)
    extra = [name for name in lines[0][1] if name not in COLUMNS]
    columns = {name: [clean(row[name]) for _, row in lines] for name in extra if name}
    return replace(of_files(root, rows, name=str(path), ignored=(), notes=()), columns=columns)
