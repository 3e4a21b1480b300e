"""What the data is like before anything is learned from it: damaged files, duplicates, leaks, shortcuts.

Every run begins with it; `python -m training audit --data DIR` does it alone.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from jaxtyping import Int64
from pydantic import TypeAdapter

from serving.contract.decode import Decoded
from serving.contract.image_header import FILE_EXTENSIONS
from training.config import Leaks
from training.data import inspection, metadata_baseline, splits
from training.data.cache import Cache
from training.data.duplicates import Duplicates, Pair
from training.data.formats import NAMES_SHOWN, Source
from training.data.inspection import ARRAY, Contents, ImageFile
from training.data.metadata_baseline import Shortcut
from training.data.splits import SPLITS, Division, Split
from training.errors import DataError

UNREADABLE_SHARE_AT_MOST = 0.01

_CONTENTS: TypeAdapter[Contents] = TypeAdapter(Contents)
_SHORTCUT: TypeAdapter[Shortcut | None] = TypeAdapter(Shortcut | None)


@dataclass(frozen=True, kw_only=True)
class Audit:
    """What was found in the data and what was done about it; indices count the readable images, as `keys` does."""

    name: str
    keys: list[str]
    labels: Int64[np.ndarray, " images"]
    classes: tuple[str, ...]
    groups: list[str]
    files: list[ImageFile]
    positions: list[int]
    """Where each image stands in the source."""
    unreadable: dict[str, str]
    """Key of each image that cannot be read, and why."""
    ignored: list[str]
    """Files beside the images whose names do not end as an accepted format's do."""
    duplicates: Duplicates
    division: Division
    shortcut: Shortcut | None
    fault: str | None
    """Why nothing can be trained on this data, if so; `division` is then as the data brings it."""

    @property
    def leaks(self) -> list[Pair]:
        """Pairs that show one picture and were found in two splits."""
        split = self.division.found_in
        return [pair for pair in self.duplicates.pairs if split[pair.first] != split[pair.second]]

    @property
    def contradictions(self) -> list[Pair]:
        """Pairs that show one picture under two labels."""
        return [pair for pair in self.duplicates.pairs if self.labels[pair.first] != self.labels[pair.second]]

    @property
    def parted_groups(self) -> dict[str, Counter[Split]]:
        """Groups found in more than one split, with their number of images in each."""
        members: dict[str, Counter[Split]] = {}
        for group, split in zip(self.groups, self.division.found_in, strict=True):
            if group:
                members.setdefault(group, Counter())[split] += 1
        return {group: counts for group, counts in members.items() if len(counts) > 1}

    @property
    def misnamed(self) -> dict[str, str]:
        """Files whose name ends as another format's does, and the format that their bytes are of."""
        return {
            key: file.format
            for key, file in zip(self.keys, self.files, strict=True)
            if file.format != ARRAY and Path(key).suffix.lower() not in FILE_EXTENSIONS[file.format]
        }

    @property
    def counts(self) -> dict[str, dict[Split, int]]:
        """Images of each class in each split."""
        return {
            name: {split: int((self.labels[self.division.splits[split]] == label).sum()) for split in SPLITS}
            for label, name in enumerate(self.classes)
        }


def audit(
    source: Source,
    cache: Cache,
    *,
    leaks: Leaks,
    val_fraction: float,
    test_fraction: float,
    seed: int,
    images_per_class: int | None = None,
) -> Audit:
    """Look for what makes scores lie.

    What shows one picture is never parted by a split that is made here; in splits that the data brings, `leaks`
    decides (`splits.divide`), and `error` is a fault.
    """
    found = contents(source, cache)
    readable, unreadable = found.positions, reasons(source, found)
    names = [source.labels[i] for i in readable]
    classes = tuple(sorted(set(names), key=_natural))
    labels = np.array([classes.index(name) for name in names], np.int64)
    groups = [source.groups[i] for i in readable]
    given = [source.splits[i] for i in readable]
    fault = None
    try:
        check_readable(source, unreadable)
        _check_classes(classes, labels)
        division = splits.divide(
            given,
            labels,
            groups,
            found.duplicates.links,
            classes,
            leaks=leaks,
            val_fraction=val_fraction,
            test_fraction=test_fraction,
            seed=seed,
            images_per_class=images_per_class,
        )
    except DataError as error:
        fault, division = str(error), splits.as_given(given, splits.components(groups, found.duplicates.links))
    components = division.components
    audited = Audit(
        name=source.name,
        keys=[source.keys[i] for i in readable],
        labels=labels,
        classes=classes,
        groups=groups,
        files=found.files,
        positions=readable,
        unreadable=unreadable,
        ignored=source.ignored,
        duplicates=found.duplicates,
        division=division,
        shortcut=cache.value(
            "shortcut",
            (source.identity, labels.tobytes(), components.tobytes()),
            _SHORTCUT,
            lambda: metadata_baseline.baseline(found.files, labels, components),
        ),
        fault=fault,
    )
    if leaks == "error" and fault is None and (audited.leaks or audited.contradictions or audited.parted_groups):
        return replace(audited, fault=_refusal(audited))
    return audited


def contents(
    source: Source, cache: Cache, keep: Callable[[int, Decoded], None] = lambda position, pixels: None
) -> Contents:
    """What is in the files, from the cache or by `files.read_all`; only then anything is handed to `keep`."""
    return cache.value("contents", source.identity, _CONTENTS, lambda: inspection.read_all(source, keep))


def reasons(source: Source, found: Contents) -> dict[str, str]:
    """Key of each image that cannot be read, and why."""
    return dict(sorted((source.keys[position], why) for position, why in found.unreadable.items()))


def check_readable(source: Source, unreadable: dict[str, str]) -> None:
    """Raise DataError, with the first reasons, when more than 1 % of the images cannot be read."""
    if len(unreadable) > UNREADABLE_SHARE_AT_MOST * len(source.keys):
        shown = "".join(f"\n  {key}: {reason}" for key, reason in list(unreadable.items())[:NAMES_SHOWN])
        counted = f"{len(unreadable):,} of {len(source.keys):,} images"
        raise DataError(f"{source.name}: {counted} cannot be read, more than {UNREADABLE_SHARE_AT_MOST:.0%}{shown}")


def _check_classes(classes: Sequence[str], labels: np.ndarray) -> None:
    if len(classes) < 2:
        raise DataError(f"only one class ({classes[0] if classes else 'none'}); a classifier needs at least two")
    counts = np.bincount(labels, minlength=len(classes))
    single = [name for name, count in zip(classes, counts, strict=True) if count < 2]
    if single:
        raise DataError(f"classes with one image only, which cannot be both learned and tested: {', '.join(single)}")


def _refusal(audited: Audit) -> str:
    pairs = list(dict.fromkeys([*audited.leaks, *audited.contradictions]))
    lines = [f"{audited.keys[pair.first]}  {audited.keys[pair.second]}  ({pair.kind})" for pair in pairs]
    lines += [f"group {group}: {dict(counts)}" for group, counts in audited.parted_groups.items()]
    shown = "".join(f"\n  {line}" for line in lines[:NAMES_SHOWN])
    more = f"\n  and {len(lines) - NAMES_SHOWN:,} more" if len(lines) > NAMES_SHOWN else ""
    return (
        f"{audited.name}: {len(audited.leaks):,} pairs show one picture in two splits, "
        f"{len(audited.contradictions):,} show one under two labels, {len(audited.parted_groups):,} groups are in two "
        f"splits; --leaks drop takes them out of training{shown}{more}"
    )


def _natural(label: str) -> tuple[bool, int, str]:
    """Sort numbers as numbers, before words."""
    return (not label.isdecimal(), int(label) if label.isdecimal() else 0, label)
