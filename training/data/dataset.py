"""All images of a run: labels, classes, splits, and pixels that were decoded and resized once, as the service does."""

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float32, Int64, UInt8
from pydantic import TypeAdapter

from serving.contract.card.model_card import ModelCard
from serving.contract.decode import Decoded, Digest, Preprocessing, as_channels
from serving.contract.formats.depth import HIGHEST, SHIFTED, Depth
from training.data import formats, splits
from training.data.audit import Audit, audit, check_classes, check_labels_and_splits, check_readable
from training.data.cache import Cache
from training.data.input import depth
from training.data.input.sizing import Sizing
from training.data.inspection.image_set import ImageSet, image_set
from training.data.inspection.pixels import inspect_pixels, resized_pixels
from training.data.inspection.threads import in_threads
from training.data.sources.forgotten import Forgotten
from training.data.sources.source import Source, Split
from training.data.splits import Division, SplitPolicy
from training.errors import DataError
from training.options.choices import DepthRule
from training.options.config import TrainConfig


@dataclass(frozen=True, kw_only=True)
class LabelledImages:
    """The readable images of a source and their division into splits. `original` reads pixels when they are needed."""

    image_set: ImageSet
    division: Division
    digest: Digest
    """`digest` of both."""

    @property
    def name(self) -> str:
        """The source, for messages."""
        return self.image_set.name

    @property
    def keys(self) -> list[str]:
        """Name of each image."""
        return self.image_set.keys

    @property
    def labels(self) -> Int64[np.ndarray, " images"]:
        """Index in `classes` of each image."""
        return self.image_set.labels

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes."""
        return self.image_set.classes

    @property
    def columns(self) -> dict[str, list[str]]:
        """What else a manifest says of each image, by the name of the column."""
        return self.image_set.columns

    @property
    def unreadable(self) -> dict[str, str]:
        """Key of each image that is left out, and the reason."""
        return self.image_set.unreadable

    @property
    def splits(self) -> dict[Split, Int64[np.ndarray, " _"]]:
        """Indices of the images of each split."""
        return self.division.splits

    @property
    def components(self) -> Int64[np.ndarray, " images"]:
        """`Division.components`."""
        return self.division.components

    def original(self, index: int) -> Decoded:
        """Read an image again, decoded to RGB and not resized."""
        return self.image_set.read(index)


@dataclass(frozen=True, kw_only=True)
class Dataset(LabelledImages):
    """Labelled images with their resized pixels and their audit.

    `images` is mapped from the cache and read-only. Copy the rows that are needed, not all of it. Where the head alone
    is trained, features take its place.
    """

    images: UInt8[np.ndarray, "images height width channels"] | Float32[np.ndarray, "images features"]
    preprocessing: Preprocessing
    sizing: Sizing
    audit: Audit

    def unresized(self, index: int) -> Decoded:
        """`original` in the channels of the model."""
        return as_channels(self.image_set.read(index), self.preprocessing.channels)


def load_images(config: TrainConfig, check: Callable[[Source], None]) -> ImageSet:
    """Read the data of a run without dividing it; use what the cache holds. Raises DataError, OSError.

    `check` may refuse the list of images before they are read.
    """
    cache = Cache(config.cache or config.out / ".cache")
    source = _find(config, cache)
    check_labels_and_splits(source, keep_splits=False)
    check(source)
    images = image_set(source, inspect_pixels(source, config, cache).contents)
    source.release()
    return images


def load_dataset(config: TrainConfig, check: Callable[[Source], None] | None = None) -> Dataset:
    """Read, divide and audit the data of a run; use what the cache holds. Raises DataError, OSError.

    `check` may refuse the list of images before they are read.
    """
    cache = Cache(config.cache or config.out / ".cache")
    source = _find(config, cache)
    check_labels_and_splits(source, keep_splits=config.fold is None and config.from_folds is None)
    if check is not None:
        check(source)
    inspected = inspect_pixels(source, config, cache)
    images = image_set(source, inspected.contents)
    audited = divide_and_audit(images, SplitPolicy.of(config), cache, config.depth)
    if audited.fault is not None:
        for note in images.notes:
            print(f"warning: {note}")
        raise DataError(audited.fault)
    images = audited.images
    preprocessing, pixels = replace(inspected.preprocessing, depth=images.depth), inspected.pixels
    if preprocessing != inspected.preprocessing:
        pixels = resized_pixels(source, preprocessing, cache)
    source.release()
    return Dataset(
        image_set=images,
        division=audited.division,
        digest=digest(images, audited.division),
        images=pixels,
        preprocessing=preprocessing,
        sizing=inspected.sizing,
        audit=audited,
    )


def _find(config: TrainConfig, cache: Cache) -> Source:
    return formats.find_source(config.data, cache, [config.out], config.corrections, Forgotten.of(config.out))


def divide_and_audit(images: ImageSet, policy: SplitPolicy, cache: Cache, rule: DepthRule = "auto") -> Audit:
    """Divide the images and audit the division. A fault that forbids training is part of the result, not raised.

    The images of the audit have the depth that the rule and the training split decide.
    """
    fault = None
    try:
        check_readable(images)
        check_classes(images)
        division = splits.divide(images, policy)
    except DataError as error:
        fault, division = str(error), splits.undivided(images)
    images = replace(images, depth=_depth(images, division, cache, rule))
    audited = audit(images, division, cache, fault)
    if policy.leaks == "error" and fault is None:
        return replace(audited, fault=audited.leak_fault)
    return audited


def _depth(images: ImageSet, division: Division, cache: Cache, rule: DepthRule) -> Depth:
    """The depth by the training images of more than 8 bits; they are read once more."""
    deep = np.intersect1d(division.splits["train"], images.deep)
    if not len(deep) or rule == "range":
        return SHIFTED

    def counted(index: int) -> depth.Counts:
        raw = images.raw(index)
        assert isinstance(raw, bytes)
        return depth.counts(raw)

    def measure() -> Depth:
        total = np.zeros(HIGHEST + 1, np.int64)
        for counts in in_threads(counted, deep.tolist(), "depth"):
            total += counts
        return depth.spread(total)

    percentiles = cache.value("depth", (images.identity, deep.tolist()), TypeAdapter(Depth), measure)
    return depth.choose(rule, percentiles)


def digest(images: ImageSet, division: Division) -> Digest:
    """SHA-256 of key, label, split and pixels of every image; a model card holds that of its training data."""
    owner = np.full(len(images.keys), "", "U5")
    for split, indices in division.splits.items():
        owner[indices] = split
    return _digest_of_rows(images, range(len(images.keys)), owner.tolist())


def training_division(images: ImageSet, card: ModelCard) -> Division | None:
    """Divide the images as the training of a model did; None if it was trained on other images."""
    try:
        division = splits.divide(images, SplitPolicy.of_card(card.provenance.config))
    except ValueError:  # no training can have had such options, or such data (DataError)
        return None
    return division if digest(images, division) == card.provenance.data_digest else None


def digest_of_test(dataset: LabelledImages, indices: Int64[np.ndarray, " _"] | None = None) -> Digest:
    """SHA-256 of key, label and pixels of every test image: two models with the same one were scored on the same.

    With `indices`, these are the test images.
    """
    tested = dataset.splits["test"] if indices is None else indices
    return _digest_of_rows(dataset.image_set, tested.tolist(), ["test"] * len(dataset.keys))


def _digest_of_rows(images: ImageSet, indices: Iterable[int], owner: Sequence[str]) -> Digest:
    rows = sorted((images.keys[i], images.classes[images.labels[i]], owner[i], images.files[i].digest) for i in indices)
    return Digest(hashlib.sha256(repr(rows).encode()).hexdigest())
