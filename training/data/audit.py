"""Look for what makes scores misleading: damaged files, duplicates, leaks between splits, contradictory labels.

Every run begins with an audit; `python -m training audit --data DIR` makes one alone.
"""

from collections import Counter
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from pydantic import TypeAdapter

from serving.contract.formats.image_header import FILE_EXTENSIONS
from training.data import metadata_baseline
from training.data.cache import Cache
from training.data.duplicates import Pair
from training.data.inspection.image_file import ARRAY, UNREADABLE, read_image
from training.data.inspection.image_set import ImageSet, ordered
from training.data.metadata_baseline import MetadataBaseline
from training.data.sources.source import NAMES_SHOWN, SPLITS, Source, Split, shortened
from training.data.splits import NOT_LEARNED, Division
from training.errors import DataError

UNREADABLE_SHARE_AT_MOST = 0.01


@dataclass(frozen=True, kw_only=True)
class Audit:
    """What is known of images and of their division into splits. Indices are those of `images`."""

    images: ImageSet
    division: Division
    baseline: MetadataBaseline | None
    fault: str | None = None
    """Why no model can be trained on this data; None where one can. With a fault, `division` has the splits of the
    source, unless the fault is a leak."""

    @property
    def leaks(self) -> list[Pair]:
        """Pairs of images that show one picture and were assigned to two splits."""
        split = self.division.assigned
        return [pair for pair in self.images.duplicates.pairs if split[pair.first] != split[pair.second]]

    @property
    def contradictions(self) -> list[Pair]:
        """Pairs of images that show one picture under two labels."""
        labels = self.images.labels
        return [pair for pair in self.images.duplicates.pairs if labels[pair.first] != labels[pair.second]]

    @property
    def parted_groups(self) -> dict[str, Counter[Split]]:
        """Groups that were assigned to more than one split, with their number of images in each."""
        members: dict[str, Counter[Split]] = {}
        for group, split in zip(self.images.groups, self.division.assigned, strict=True):
            if group:
                members.setdefault(group, Counter())[split] += 1
        return {group: counts for group, counts in members.items() if len(counts) > 1}

    @property
    def misnamed(self) -> dict[str, str]:
        """Files whose name has the ending of another format, and the format of their bytes."""
        return {
            key: file.format
            for key, file in zip(self.images.keys, self.images.files, strict=True)
            if file.format != ARRAY and Path(key).suffix.lower() not in FILE_EXTENSIONS[file.format]
        }

    @property
    def counts(self) -> dict[str, dict[Split, int]]:
        """Images of each class in each split."""
        labels, splits = self.images.labels, self.division.splits
        return {
            name: {split: int((labels[splits[split]] == label).sum()) for split in SPLITS}
            for label, name in enumerate(self.images.classes)
        }

    @property
    def leak_fault(self) -> str | None:
        """The fault that --leaks error makes of leaks and contradictions; None where there are none."""
        pairs = list(dict.fromkeys([*self.leaks, *self.contradictions]))
        keys = self.images.keys
        lines = [f"{keys[pair.first]}  {keys[pair.second]}  ({pair.kind})" for pair in pairs]
        lines += [f"group {group}: {dict(counts)}" for group, counts in self.parted_groups.items()]
        if not lines:
            return None
        shown = "".join(f"\n  {line}" for line in lines[:NAMES_SHOWN])
        more = f"\n  and {len(lines) - NAMES_SHOWN:,} more" if len(lines) > NAMES_SHOWN else ""
        return (
            f"{self.images.name}: {len(self.leaks):,} pairs show one picture in two splits, "
            f"{len(self.contradictions):,} show one under two labels, {len(self.parted_groups):,} groups are in two "
            f"splits; --leaks drop takes them out of training{shown}{more}"
        )


def audit(images: ImageSet, division: Division, cache: Cache, fault: str | None = None) -> Audit:
    """Audit a finished division."""
    baseline = cache.value(
        "baseline",
        (images.identity, images.labels.tobytes(), division.components.tobytes()),
        TypeAdapter(MetadataBaseline | None),
        lambda: metadata_baseline.measure(images.files, images.labels, division.components),
    )
    return Audit(images=images, division=division, baseline=baseline, fault=fault)


def check_readable(images: ImageSet) -> None:
    """Raise DataError, with the first reasons, when more than 1 % of the images cannot be read."""
    unreadable, count = images.unreadable, len(images.keys) + len(images.unreadable)
    if len(unreadable) > UNREADABLE_SHARE_AT_MOST * count:
        shown = "".join(f"\n  {key}: {reason}" for key, reason in list(unreadable.items())[:NAMES_SHOWN])
        share = f"{len(unreadable):,} of {count:,} images cannot be read, more than {UNREADABLE_SHARE_AT_MOST:.0%}"
        raise DataError(f"{images.name}: {share}{shown}")


def check_classes(images: ImageSet) -> None:
    """Raise DataError unless there are two classes, each of two images or more."""
    _check_counts(Counter(images.classes[label] for label in images.labels))


def check_labels_and_splits(source: Source, *, keep_splits: bool) -> None:
    """Raise DataError where the labels, and the splits if they are kept, already show what is refused later.

    A class of which no image can be read is left out later and no fault, so one image of the classes at fault is read.
    """
    counts = Counter(source.labels)
    if not _any_readable(source, [i for i, label in enumerate(source.labels) if counts[label] < 2]):
        counts = Counter({label: count for label, count in counts.items() if count > 1})
    _check_counts(counts)
    learned = {label for label, split in zip(source.labels, source.splits, strict=True) if split in (None, "train")}
    others = [i for i, label in enumerate(source.labels) if label not in learned]
    if keep_splits and _any_readable(source, others):
        raise DataError(f"{NOT_LEARNED}: {shortened(ordered(source.labels[i] for i in others))}")


def _check_counts(counts: Counter[str]) -> None:
    if len(counts) < 2:
        raise DataError(f"only one class ({''.join(counts) or 'none'}); a classifier needs at least two")
    single = ordered(label for label, count in counts.items() if count < 2)
    if single:
        raise DataError(f"classes with one image only, which cannot be both learned and tested: {shortened(single)}")


def _any_readable(source: Source, positions: Iterable[int]) -> bool:
    for position in positions:
        with suppress(*UNREADABLE):
            read_image(source.read(position))
            return True
    return False
