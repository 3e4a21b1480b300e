"""The paths of the images to predict: those in a folder, or those that a manifest lists."""

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from serving.contract.formats.image_header import IMAGE_EXTENSIONS
from serving.contract.listing import ManifestError, is_hidden, on_disk, read_manifest

HEAD = 1024
"""Bytes among which an image, an archive or a table has a zero, and text has none."""
UNDECODED = "surrogateescape"
"""A path that is not UTF-8 keeps its bytes."""


def image_paths(source: Path, skipped: Counter[str]) -> Iterator[str]:
    """Paths relative to the folder `source`, or to the folder of the manifest `source`, one at a time.

    A manifest is a CSV with a column `path`, or a text file with a path on each line. In a folder, the files with the
    extension of an image are taken, at any depth. Hidden files and folders, and linked folders, are left out. The other
    files are counted in `skipped`, by extension. Raises ManifestError before the first path, OSError.
    """
    if source.is_dir():
        yield from _in_folder(source, "", skipped)
    elif source.suffix.lower() == ".csv":
        for _ in read_manifest(source, ("path",), UNDECODED):
            pass  # a broken row is found before hours of predictions
        for _, row in read_manifest(source, ("path",), UNDECODED):
            yield on_disk(source.parent, row["path"])
    else:
        with source.open("rb") as file:
            if b"\0" in file.read(HEAD):
                raise ManifestError(f"{source}: expected a folder, a CSV file or a text file with a path on each line")
        with source.open(encoding="utf-8-sig", errors=UNDECODED) as file:
            yield from (on_disk(source.parent, line.rstrip("\n")) for line in file if line.strip())


def _in_folder(root: Path, below: str, skipped: Counter[str]) -> Iterator[str]:
    with os.scandir(root / below) as entries:
        for entry in entries:
            path = f"{below}{entry.name}"
            if is_hidden(entry.name):
                continue
            if entry.is_dir(follow_symlinks=False):
                yield from _in_folder(root, f"{path}/", skipped)
            elif not entry.name.lower().endswith(IMAGE_EXTENSIONS):
                skipped[Path(entry.name).suffix] += 1
            elif entry.is_file() or entry.is_symlink():  # a broken link gets a row with an error
                yield path
