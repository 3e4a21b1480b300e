"""The person to forget: which images of the data are theirs, copies among them, by name and by picture."""

import difflib
import re
from collections.abc import Container, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import cv2
import numpy as np
from jaxtyping import UInt8
from pydantic import TypeAdapter

from serving.contract.decode import Decoded, Digest, Fit, Preprocessing
from serving.contract.formats.image_header import IMAGE_EXTENSIONS, ImageError
from serving.contract.objects import Location, Url
from training.data import duplicates
from training.data.cache import Cache
from training.data.duplicates import FINGERPRINT
from training.data.formats import find_source
from training.data.inspection.contents import CONTENTS, Contents, inspect_files
from training.data.inspection.image_set import ImageSet, image_set
from training.data.sources.forgotten import Content, Forgotten
from training.data.sources.source import Source, shortened
from training.errors import ConfigError, DataError
from training.forgetting.names import Names

_OF_ARRAY = re.compile(r"(\.npz#\w+/|^digits#)\d+$")
KEPT_PX = 512
"""Pictures are kept in memory with at most this longer side: the rule compares them at 64 px."""


@dataclass(frozen=True, kw_only=True)
class ForgetRequest:
    """What a person has asked for: a group of the data, and images by name."""

    group: str | None
    paths: tuple[Path, ...]


@dataclass(frozen=True, kw_only=True)
class Person:
    """Everything by which a person's images are recognised."""

    request: ForgetRequest
    all_images: ImageSet
    """All images of the data."""
    root: Path | None
    """Folder that the names are relative to; None where images are no files of their own."""
    keys: tuple[str, ...]
    """Names of the images, copies included, also of those that are not in the data any more."""
    copies: dict[str, str]
    """Names that are not of the group, each with the image that it is a copy of."""
    present: tuple[str, ...]
    """Names of those that are in the data."""
    contents: frozenset[Content]
    """Size and SHA-256 of each of these."""
    images_of_later_runs: ImageSet | None
    """The data without images that were forgotten before, as later runs read it; None where none were."""
    digests: frozenset[Digest]
    """Digests of the pixels of all that can be read."""
    pictures: tuple[UInt8[np.ndarray, "_ _ 3"], ...]

    @property
    def least_similarity(self) -> float:
        """What the audit requires of a near-duplicate in this data."""
        return self.all_images.duplicates.least_similarity

    @property
    def names(self) -> Names:
        """The names as texts may have them."""
        places = {part for folder in (self.root, self._resolved) if folder for part in _endings(folder)}
        whole = [str(place / key) for key in self.keys for place in places]
        group = [] if self.request.group is None else [f"group {self.request.group}"]
        return Names([*self.keys, *whole, *group])

    @property
    def _resolved(self) -> Path | None:
        return self.root.resolve() if self.root else None

    def fingerprints(self) -> np.ndarray:
        """Fingerprints of the pictures, an array of FINGERPRINT."""
        return _stacked([duplicates.fingerprint(picture) for picture in self.pictures])

    def fingerprints_at(self, height: int, width: int) -> np.ndarray:
        """The same of the pictures as a cache may hold them: stretched, padded or cropped to this size."""
        shown = []
        for way in get_args(Fit):
            preprocessing = Preprocessing(height=height, width=width, channels=3, interpolation="area", fit=way)
            for picture in self.pictures:
                with suppress(ImageError):  # one too long to be cropped is in no cache of cropped ones
                    shown.append(duplicates.fingerprint(preprocessing.fitted(picture)))
        return _stacked(shown)


def _endings(folder: Path) -> Iterator[Path]:
    """The folder as another, above it, has it: of /a/b itself, a/b and b."""
    return (Path(*folder.parts[start:]) for start in range(len(folder.parts)))


def recognise(request: ForgetRequest, data: Location | None, cache: Path | None, out: Path) -> Person:
    """Read the data and find the images. `cache` is used for what is at a URL alone, for nothing else may be kept.

    Raises DataError where a group is not in the data, ConfigError where a path is no image's, OSError.
    """
    source = find_source(data, Cache(cache if isinstance(data, Url) else None), [out])
    contents = inspect_files(source, Cache())
    root = _root(data)
    chosen = _of_group(source, request.group) if request.group is not None else set[int]()
    places = {key: place for place, key in enumerate(source.keys)}
    named = {_name(path, places, root): None for path in request.paths}
    chosen |= {places[name] for name in named if name in places}
    absent = [name for name in named if name not in places]
    for name in absent:
        _check_absent(name, root)
    copies = _copies(chosen, contents)
    every = sorted(chosen | copies.keys())
    positions = {position: index for index, position in enumerate(contents.positions)}
    readable = [positions[position] for position in every if position in positions]
    images = image_set(source, contents)
    before = Forgotten.of(out)
    return Person(
        request=request,
        all_images=images,
        root=root,
        keys=(*(source.keys[position] for position in every), *absent),
        copies={source.keys[copy]: source.keys[original] for copy, original in copies.items()},
        present=tuple(source.keys[position] for position in every),
        contents=frozenset(Content.of(source.read(contents.positions[index])) for index in readable),
        images_of_later_runs=_images_of_later_runs(data, cache, out, before) if before.contents else None,
        digests=frozenset(contents.files[index].digest for index in readable),
        pictures=tuple(_shrunk(images.read(index)) for index in readable),
    )


def _images_of_later_runs(data: Location | None, cache: Path | None, out: Path, before: Forgotten) -> ImageSet:
    """The data as runs read it that began after the last call of `forget`, from the cache where they have left it."""
    source = find_source(data, Cache(cache if isinstance(data, Url) else None), [out], forgotten=before)
    known = Cache(cache).find(CONTENTS, source.identity, TypeAdapter(Contents))
    return image_set(source, known or inspect_files(source, Cache()))


def _root(data: Location | None) -> Path | None:
    if not isinstance(data, Path) or data.suffix.lower() == ".npz":
        return None
    return data if data.is_dir() else data.parent


def _of_group(source: Source, group: str) -> set[int]:
    members = {position for position, name in enumerate(source.groups) if name == group}
    if not members:
        known = sorted(set(source.groups) - {""})
        near = difflib.get_close_matches(group, known)
        there = f"near it are {shortened(near)}" if near else f"there are {len(known):,} groups"
        raise DataError(f"{source.name}: no image has the group {group!r}; {there}. --path takes names of images")
    return members


def _name(path: Path, known: Container[str], root: Path | None) -> str:
    """Name of the image of this name or file, whether or not the data has it."""
    names = [str(path)]
    if root is not None:
        # As it is written first: an image may be a link that leads out of the data.
        for file, folder in ((path.absolute(), root.absolute()), (path.resolve(), root.resolve())):
            if file.is_relative_to(folder):
                names.append(str(file.relative_to(folder)))
    return next((name for name in names if name in known), names[-1])


def _check_absent(name: str, root: Path | None) -> None:
    """Raise ConfigError for what names no image, such as a folder: it may stand anywhere in any file."""
    if not (name.lower().endswith(IMAGE_EXTENSIONS) or _OF_ARRAY.search(name)):
        folder = Path(name).is_dir() or (root is not None and (root / name).is_dir())
        given = "a folder" if folder else "neither in the data nor the name of an image"
        raise ConfigError(f"--path {name}: {given}; expected images, such as blue/0.png or data.npz#train/0")


def _copies(chosen: set[int], contents: Contents) -> dict[int, int]:
    """Positions of further images that show a picture of these, each with the one that it is a copy of.

    A copy of a copy is one, too.
    """
    positions = contents.positions
    linked: dict[int, list[int]] = {}
    for pair in contents.duplicates.pairs:
        one, other = positions[pair.first], positions[pair.second]
        linked.setdefault(one, []).append(other)
        linked.setdefault(other, []).append(one)
    copies: dict[int, int] = {}
    waiting = sorted(chosen)
    while waiting:
        image = waiting.pop()
        for other in linked.get(image, ()):
            if other not in chosen and other not in copies:
                copies[other] = copies.get(image, image)
                waiting.append(other)
    return copies


def _shrunk(pixels: Decoded) -> Decoded:
    scale = KEPT_PX / max(pixels.shape[:2])
    if scale >= 1:
        return pixels
    height, width = (max(1, round(side * scale)) for side in pixels.shape[:2])
    return cv2.resize(pixels, (width, height), interpolation=cv2.INTER_AREA)


def _stacked(fingerprints: Sequence[np.ndarray]) -> np.ndarray:
    return np.stack(fingerprints) if fingerprints else np.empty(0, FINGERPRINT)
