"""Images in class folders, or in class folders within the folders of splits, such as train/ and test/."""

import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from serving.contract.formats.image_header import IMAGE_EXTENSIONS
from serving.contract.listing import clean
from training.data.sources.source import SPLIT_NAMES, Row, Source, Split, of_files, shortened, splits_of
from training.data.sources.tree import IMPORT_RECORD, Tree, import_hint, is_image
from training.errors import DataError

_SPLIT = re.compile(rf"(.*?)({'|'.join(sorted(SPLIT_NAMES, key=len, reverse=True))})(.*)", re.DOTALL)


@dataclass
class Folder:
    """A folder directly below the root: its class folders with their files, and the files in none of them."""

    path: Path
    classes: dict[str, list[Path]] = field(default_factory=dict)
    """The files below each folder in it, by the name of that folder."""
    files: list[Path] = field(default_factory=list)
    """Files in no class folder; for a folder within itself, also those beside the inner one."""

    @property
    def with_images(self) -> set[str]:
        """Names of the class folders that hold an image."""
        return {name for name, files in self.classes.items() if any(map(is_image, files))}

    @property
    def is_flat(self) -> bool:
        """Whether it holds images, and none of them in a class folder."""
        return not self.with_images and any(map(is_image, self.files))

    @property
    def holds_images(self) -> bool:
        """Whether there is an image in it or below it."""
        return self.is_flat or bool(self.with_images)

    @property
    def all_files(self) -> list[Path]:
        """The files in it and below it."""
        return [*self.files, *(path for files in self.classes.values() for path in files)]


@dataclass
class Listing:
    """The files of each class in each split, and sentences on what is in none."""

    labelled: list[tuple[Path, str, Split | None]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    empty: dict[str, list[Path]] = field(default_factory=dict)
    """Class folders without an image, with their files."""

    def add(self, name: str, label: str, split: Split | None, files: Sequence[Path]) -> None:
        """Add a class folder; `name` is its path below the root."""
        if not any(map(is_image, files)):
            self.empty[name] = list(files)
        self.labelled += [(path, clean(label), split) for path in files]


def folders(root: Path, outputs: Sequence[Path]) -> Source:
    """The images below `root`; files in `outputs` are none. Raises DataError, OSError."""
    tree = Tree(root, outputs)
    tops = [_read(tree, path) for path in tree.folders(root)]
    splits = _splits(root, [top for top in tops if top.holds_images])
    listing = _by_split(tree, tops, splits) if splits else _by_class(tree, tops)
    loose = Folder(root, files=list(tree.files(root, deep=False)))
    listing.notes += _tables(root, loose.files)
    _note_loose(tree, listing, [loose, *(top for top in tops if top.path in splits)])
    images = [Row(tree.name(path), label, "", split) for path, label, split in listing.labelled if is_image(path)]
    if not images:
        raise DataError(
            f"{root}: no images ({' '.join(sorted(IMAGE_EXTENSIONS))}) in class folders; "
            f"expected {root.name}/<class>/<image>, {root.name}/train/<class>/<image>, or a CSV manifest"
            + "".join(f"\n  {note}" for note in [*tree.notes(), *listing.notes, *_empty(tree, listing)])
        )
    ignored = [path for path, _, _ in listing.labelled if not is_image(path)]
    notes = [
        *tree.notes(),
        *listing.notes,
        *_below_classes(root, images),
        *_empty(tree, listing),
        *_ignored(root, ignored),
    ]
    return of_files(root, images, name=str(root), ignored=[tree.name(path) for path in ignored], notes=notes)


def _read(tree: Tree, path: Path) -> Folder:
    subfolders = tree.folders(path)
    if len(subfolders) == 1 and subfolders[0].name == path.name:  # as archives are unpacked: seg_train/seg_train/
        inner = _read(tree, subfolders[0])
        return replace(inner, files=[*tree.files(path, deep=False), *inner.files])
    classes: dict[str, list[Path]] = {}
    for folder in subfolders:
        classes.setdefault(folder.name, []).extend(tree.files(folder, deep=True))
    return Folder(path, classes, list(tree.files(path, deep=False)))


def _by_class(tree: Tree, tops: Sequence[Folder]) -> Listing:
    listing = Listing()
    for top in tops:
        listing.add(tree.name(top.path), top.path.name, None, top.all_files)
    return listing


def _by_split(tree: Tree, tops: Sequence[Folder], splits: dict[Path, Split]) -> Listing:
    listing = Listing()
    for top in tops:
        if top.path in splits:
            for label, files in top.classes.items():
                listing.add(f"{tree.name(top.path)}/{label}", label, splits[top.path], files)
    counts = {top.path.name: _count(top.all_files) for top in tops if top.path not in splits}
    if outside := [f"{name} ({count:,})" for name, count in counts.items() if count]:
        listing.notes.append(f"folders beside the splits are left out, with their images: {shortened(outside)}.")
    return listing


def _note_loose(tree: Tree, listing: Listing, places: Sequence[Folder]) -> None:
    loose = Counter(tree.name(path.parent) for place in places for path in place.files if is_image(path))
    if loose:
        shown = shortened([f"{name} ({count:,})" for name, count in loose.items()])
        listing.notes.append(f"images in no class folder are left out: {shown}.")


def _tables(root: Path, files: Sequence[Path]) -> list[str]:
    names = [path.name for path in files if path.suffix.lower() == ".csv" and path.name != IMPORT_RECORD]
    read = f"`--data {root / names[0]}` takes that as a manifest (path, label)" if names else ""
    return [f"CSV files beside the folders are not read: {shortened(names)}; {read}."] if names else []


def _below_classes(root: Path, images: Sequence[Row]) -> list[str]:
    """A sentence where folders in class folders may be more than a part of the class.

    Raises DataError where they are the same splits in every class.
    """
    counts: Counter[str] = Counter()
    inner: dict[str, set[str]] = defaultdict(set)
    for (folder, label), count in Counter((row.path.rpartition("/")[0], row.label) for row in images).items():
        name = _below_class(folder, label)
        counts[name] += count
        inner[label].add(name)
    splits = splits_of(name.lower() for name in counts)
    everywhere = all(names == counts.keys() for names in inner.values())
    if everywhere and len(splits) == len(counts) and len(set(splits.values())) > 1:
        raise DataError(
            f"{root}: splits are in every class folder ({', '.join(sorted(counts))}); expected "
            f"{root.name}/<split>/<class>/<image>, or a CSV manifest (path, label, split)"
        )
    classes = Counter(name for names in inner.values() for name in names)
    doubtful = [name for name in sorted(counts) if classes[name] > 1 or name.lower() in splits or _is_mask(name)]
    shown = shortened([f"{name} ({counts[name]:,})" for name in doubtful if name])
    if not shown or len(counts) == 1:  # one folder in each class divides nothing
        return []
    return [
        f"all images below a class folder are of its class, also those in folders called {shown}; "
        "a CSV manifest (path, label, split) says what else is meant."
    ]


def _below_class(folder: str, label: str) -> str:
    """Name of the folder in the class folder, which may be within itself, that an image is in or below; else empty."""
    parts = [clean(part) for part in folder.split("/")]
    return next((part for part in parts[parts.index(label) + 1 :] if part != label), "")


def _is_mask(name: str) -> bool:
    return name.lower().endswith(("mask", "masks"))


def _count(files: Sequence[Path]) -> int:
    return sum(map(is_image, files))


def _empty(tree: Tree, listing: Listing) -> list[str]:
    shown = [
        f"{name} ({_endings(files) or 'empty'})"
        for name, files in listing.empty.items()
        if files or not any(written.startswith(f"{name}/") for written in tree.own)
    ]
    accepted = " ".join(sorted(IMAGE_EXTENSIONS))
    hint = import_hint(tree.root, (file for files in listing.empty.values() for file in files))
    return [f"class folders without an image ({accepted}) are left out: {shortened(shown)}.{hint}"] if shown else []


def _ignored(root: Path, files: Sequence[Path]) -> list[str]:
    if not files:
        return []
    left_out = f"{len(files):,} files of other kinds in class folders are left out: {_endings(files)}."
    return [left_out + import_hint(root, files)]


def _endings(files: Sequence[Path]) -> str:
    counts = Counter(path.suffix.lower() or "no ending" for path in files)
    return ", ".join(f"{count:,} {ending}" for ending, count in counts.most_common(5))


def _splits(root: Path, tops: Sequence[Folder]) -> dict[Path, Split]:
    """The folders that are splits; none where all are classes. Raises DataError where both readings are possible."""
    splits = _named_as_splits([top.path for top in tops])
    named = [top for top in tops if top.path in splits]
    others = [top for top in tops if top.path not in splits]
    divided = [top for top in named if top.with_images]
    if not named:
        return {}
    if not divided:  # images, but no classes: nothing to learn where they are splits
        if others and len(set(splits.values())) == 1:
            return {}
        raise _doubt(root, named, others)
    has_several = len(set(splits.values())) > 1 and len(divided) > 1
    shared = {
        name for top in divided for name in top.with_images if any(name in t.with_images for t in tops if t != top)
    }
    if others and not (has_several and shared):
        if shared or has_several or {top.path.name for top in others} & divided[0].with_images:
            raise _doubt(root, named, others)
        return {}
    return splits


def _doubt(root: Path, named: Sequence[Folder], others: Sequence[Folder]) -> DataError:
    names = ", ".join(f"{top.path.name}/" for top in named)
    beside = f"; beside them {shortened([f'{top.path.name}/' for top in others])}" if others else ""
    return DataError(
        f"{root}: {names} can be read in two ways{beside}. As splits: expected {named[0].path.name}/<class>/<image> in "
        "each of them, and nothing but splits beside them. As classes: a class is named like a split; rename its "
        "folder. A CSV manifest (path, label, split) says which is meant"
    )


def _named_as_splits(paths: Sequence[Path]) -> dict[Path, Split]:
    """Folders named by a split, or by different splits with the same text around it (seg_train, seg_test)."""
    by_affix: dict[tuple[str, str], dict[Path, str]] = {}
    for path in paths:
        if match := _SPLIT.fullmatch(path.name.lower()):
            by_affix.setdefault((match[1], match[3]), {})[path] = match[2]
    exact = by_affix.pop(("", ""), {})
    named = [words for words in by_affix.values() if len({SPLIT_NAMES[word] for word in words.values()}) > 1]
    words = exact or max(named, key=len, default={})
    splits = splits_of(words.values())
    return {path: splits[word] for path, word in words.items()}
