"""Labels that a person has corrected: a CSV file whose labels replace those of a source."""

import difflib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from serving.contract.listing import ManifestError, clean, read_manifest
from training.data.sources.source import Source, plain, refuse
from training.errors import DataError


def corrected(source: Source, path: Path) -> Source:
    """The source with the labels of a CSV file: columns `path`, an image's name as reports show it, and `label`.

    Other columns are not read, so that a label-issues.csv can be edited and given. A label must be a class of the
    source, for a typing error would be a class of its own. A path may be spelt as in a manifest. Raises DataError,
    OSError.
    """
    place = {plain(key): index for index, key in enumerate(source.keys)}
    place |= {key: index for index, key in enumerate(source.keys)}
    labels, classes = list(source.labels), set(source.labels)
    unknown, strange, twice = [], [], []
    first: dict[int, tuple[int, str]] = {}
    try:
        for line, row in read_manifest(path, ("path", "label")):
            index, label = place.get(row["path"], place.get(plain(row["path"].strip()))), clean(row["label"])
            earlier, other = (line, label) if index is None else first.setdefault(index, (line, label))
            if index is None:
                unknown.append(f"line {line}: {row['path']}")
            elif label not in classes:
                strange.append(f"line {line}: {label!r}{_nearest(label, sorted(classes))}")
            elif label != other:
                twice.append(f"line {line}: {row['path']}: {label!r}, but {other!r} in line {earlier}")
            else:
                labels[index] = label
    except ManifestError as error:
        raise DataError(str(error)) from error
    except OSError as error:
        raise DataError(f"--corrections {path}: cannot be read ({error.strerror})") from error
    refuse(path, f"images that {source.name} does not have", unknown)
    refuse(path, f"labels that are no class of {source.name}", strange)
    refuse(path, "images with two labels", twice)
    changed = sum(before != after for before, after in zip(source.labels, labels, strict=True))
    note = f"{changed:,} label{'s are' if changed != 1 else ' is'} corrected by {path}."
    return replace(source, labels=labels, notes=[*source.notes, note])


def _nearest(label: str, classes: Sequence[str]) -> str:
    near = difflib.get_close_matches(label, classes, 1)
    return f"; near it is {near[0]}" if near else ""
