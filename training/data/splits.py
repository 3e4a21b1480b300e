"""Divide images into training, validation and test: splits of the source are kept, missing ones are made."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import islice
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Int64
from pydantic import TypeAdapter
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from sklearn.model_selection import StratifiedGroupKFold

from training.data.inspection.image_set import ImageSet
from training.data.left_out import LeftOut, left_out
from training.data.sources.source import SPLITS, Split, shortened
from training.errors import DataError
from training.options.choices import Leaks
from training.options.config import TrainConfig
from training.options.limits import share_of

CONTRADICTION = "one picture under two labels"
NOT_LEARNED = "classes without a training image"


@dataclass(frozen=True, kw_only=True)
class SplitPolicy:
    """The options that decide which image is in which split."""

    leaks: Leaks
    val_fraction: float
    test_fraction: float
    seed: int
    images_per_class: int | None = None
    fold: str | None = None
    from_folds: Path | None = None

    @classmethod
    def of(cls, config: TrainConfig) -> "SplitPolicy":
        """The policy of a training."""
        return cls(**{option.name: getattr(config, option.name) for option in fields(cls)})

    @classmethod
    def of_card(cls, options: Mapping[str, object]) -> "SplitPolicy":
        """The policy of a training whose options a model card holds. Raises ValueError where one is missing."""
        values = {option.name: options.get(option.name) for option in fields(cls)}
        return TypeAdapter(cls).validate_python(values)


@dataclass(frozen=True, kw_only=True)
class Division:
    """Which image is in which split."""

    assigned: list[Split]
    """The split of each image before any image was removed."""
    splits: dict[Split, Int64[np.ndarray, " _"]]
    """Indices of the images of each split, ascending."""
    components: Int64[np.ndarray, " images"]
    """Images of one number share a group or show one picture. Bootstrap intervals draw them together."""
    removed: dict[int, str]
    """Images that leaks or contradictions removed from the splits, and the reason; not those that exceed
    --images-per-class."""

    @property
    def leak_free_test(self) -> Int64[np.ndarray, " _"]:
        """The test images whose picture and group are in no other split; all but where --leaks leaves them there."""
        test = self.splits["test"]
        elsewhere = self.components[np.r_[self.splits["train"], self.splits["val"]]]
        return test[~np.isin(self.components[test], elsewhere)]


def divide(images: ImageSet, policy: SplitPolicy) -> Division:
    """Keep the splits of the source and make the missing ones, without parting a group or the copies of a picture.

    With a `fold`, the test split is that part of all images, or those with a value, and no split of the source is kept.
    With `from_folds`, every image is in all three splits: nothing is held out, and others' answers are scored.
    With `leaks` of `drop`: a component with images in the test split leaves training and validation; one with images in
    the validation split leaves training; a picture with two labels leaves all splits. Otherwise nothing is removed.
    Then training keeps at most `images_per_class` images of each class. Raises DataError, and ConfigError for a `fold`
    of a column or a value that is not there.
    """
    drop = policy.leaks == "drop"
    contradictory = contradictions(images) if drop else np.zeros(len(images.labels), bool)
    usable = np.flatnonzero(~contradictory)
    if usable.size == 0:
        raise DataError(f"{images.name}: every image shows a picture that is also under another label; none is left")
    lost = [name for label, name in enumerate(images.classes) if label not in images.labels[usable]]
    if lost:
        raise DataError(
            f"{images.name}: every image of {shortened(lost)} shows a picture that is also under another label"
        )
    component = components(images.groups, images.duplicates.links)
    if policy.from_folds is not None:
        return Division(
            assigned=["train"] * len(images.labels),
            splits=dict.fromkeys(SPLITS, usable),
            components=component,
            removed=dict.fromkeys(np.flatnonzero(contradictory).tolist(), CONTRADICTION),
        )
    given = [images.source_splits[i] for i in usable]
    if policy.fold is not None:
        which = LeftOut.of(policy.fold)
        in_fold = (
            fold(policy.fold, images.labels[usable], component[usable], images.classes, policy.seed)
            if which is None
            else left_out(images, which)[usable]
        )
        given = ["test" if inside else None for inside in in_fold]
    completed = complete(given, images.labels[usable], component[usable], images.classes, policy)
    assigned = np.array([split or "train" for split in images.source_splits], dtype=object)
    for split, members in completed.items():
        assigned[usable[members]] = split
    removed = {int(i): CONTRADICTION for i in np.flatnonzero(contradictory)}
    if drop:
        removed = leaking(assigned, component, contradictory) | removed
    remains = ~np.isin(np.arange(len(assigned)), list(removed))
    splits = {split: np.flatnonzero((assigned == split) & remains) for split in SPLITS}
    if policy.images_per_class is not None and len(splits["train"]):
        splits["train"] = at_most(policy.images_per_class, splits["train"], images.labels, policy.seed)
    _check(splits, images.labels, images.classes)
    return Division(assigned=list(assigned), splits=splits, components=component, removed=dict(sorted(removed.items())))


def fold(
    which: str, labels: np.ndarray, components: np.ndarray, classes: Sequence[str], seed: int
) -> Bool[np.ndarray, " images"]:
    """Which images are in the fold `which`, i/n: stratified by label, components kept together. Raises DataError."""
    i, n = share_of("fold", which)
    for label in np.unique(labels):
        count = len(np.unique(components[labels == label]))
        if count < n:
            raise DataError(f"class {classes[label]}: {count} groups cannot be in {n} folds, at most in {count}")
    parts = StratifiedGroupKFold(n, shuffle=True, random_state=seed).split(labels, labels, components)
    _, members = next(islice(parts, i - 1, None))
    return np.isin(np.arange(len(labels)), members)


def undivided(images: ImageSet) -> Division:
    """The splits of the source; images without one are in training, and nothing is removed."""
    assigned: list[Split] = [split or "train" for split in images.source_splits]
    return Division(
        assigned=assigned,
        splits={split: np.flatnonzero([name == split for name in assigned]) for split in SPLITS},
        components=components(images.groups, images.duplicates.links),
        removed={},
    )


def contradictions(images: ImageSet) -> Bool[np.ndarray, " images"]:
    """Which images show a picture that also has another label."""
    picture = components([""] * len(images.labels), images.duplicates.links)
    labelled = np.unique(np.stack([picture, images.labels], axis=1), axis=0)
    pictures, labels = np.unique(labelled[:, 0], return_counts=True)
    contradictory: np.ndarray = np.isin(picture, pictures[labels > 1])
    return contradictory


def leaking(assigned: np.ndarray, components: np.ndarray, contradictory: np.ndarray) -> dict[int, str]:
    """Images of training and validation whose component is also in an evaluation split, and the reason to remove them.

    An image that is `contradictory` is in no split, so that it makes no other one leak.
    """
    removed: dict[int, str] = {}
    for split, losing in (("test", ("train", "val")), ("val", ("train",))):
        held_out = components[(assigned == split) & ~contradictory]
        for i in np.flatnonzero(np.isin(components, held_out) & np.isin(assigned, losing)):
            removed.setdefault(int(i), f"also in the {split} split")
    return removed


def at_most(images_per_class: int, indices: np.ndarray, labels: np.ndarray, seed: int) -> np.ndarray:
    """Draw at most this many of the images `indices` of each class. The draw of 5 is part of the same seed's of 20."""
    drawn = np.random.default_rng(seed).permutation(indices)
    chosen = [drawn[labels[drawn] == label][:images_per_class] for label in np.unique(labels[indices])]
    return np.sort(np.concatenate(chosen))


def components(groups: Sequence[str], pairs: Int64[np.ndarray, "pairs 2"]) -> Int64[np.ndarray, " images"]:
    """Number the sets of images that must be in one split: a common group or a pair links two images.

    An empty string is no group.
    """
    first: dict[str, int] = {}
    by_group = [(first.setdefault(group, i), i) for i, group in enumerate(groups) if group]
    links = np.concatenate([np.array(by_group, np.int64).reshape(-1, 2), pairs])
    graph = coo_matrix((np.ones(len(links)), (links[:, 0], links[:, 1])), shape=(len(groups), len(groups)))
    _, component = connected_components(graph, directed=False)
    numbers: np.ndarray = component.astype(np.int64)
    return numbers


def complete(
    source_splits: Sequence[Split | None],
    labels: np.ndarray,
    components: np.ndarray,
    classes: Sequence[str],
    policy: SplitPolicy,
) -> dict[Split, np.ndarray]:
    """Return the indices of each split. A split that the source lacks is drawn from its training images.

    The draw is stratified by label and seeded, and keeps each component together. Raises DataError.
    """
    splits = np.array([split or "train" for split in source_splits])
    fractions: dict[Split, float] = {"test": policy.test_fraction, "val": policy.val_fraction}
    missing = {split: fraction for split, fraction in fractions.items() if split not in splits}
    rng = np.random.default_rng(policy.seed)
    # A component with images in a split of the source stays where it is.
    settled = np.zeros(components.max() + 1, bool)
    settled[components[splits != "train"]] = True
    rarest_first = np.argsort(np.bincount(labels), kind="stable")
    for label in rarest_first if missing else ():
        mine = labels == label
        members, sizes = np.unique(components[mine], return_counts=True)
        if len(members) < 2:
            raise DataError(f"class {classes[label]}: its {sizes.sum()} images are one group, which cannot be split")
        drawn = rng.permutation(np.flatnonzero(~settled[members]))
        in_training = settled[components[mine]] & (splits[mine] == "train")
        reserved = int(not in_training.any())  # at least one component remains for training
        available = (splits[mine] == "train").sum()
        for split, fraction in missing.items():
            there = (splits[mine] == split).sum()
            chosen = _up_to(fraction * available - there, sizes[drawn], least=int(there == 0))
            chosen = chosen[: max(len(drawn) - reserved, 0)]
            taken, drawn = drawn[chosen], np.delete(drawn, chosen)
            splits[np.isin(components, members[taken])] = split
        settled[members] = True
    indices = {split: np.flatnonzero(splits == split) for split in SPLITS}
    _check(indices, labels, classes)
    return indices


def _up_to(wanted: float, sizes: np.ndarray, least: int) -> list[int]:
    """Positions of the first components of together at most `wanted` images; where none fits, of the `least` smallest.

    The first that does not fit ends the search, unless it is more than half of `wanted`: it is then passed over, for
    less than half may have been found.
    """
    chosen: list[int] = []
    total = 0
    for position, size in enumerate(sizes.tolist()):
        if total + size <= wanted:
            chosen.append(position)
            total += size
        elif size <= wanted / 2:
            break
    return chosen or np.argsort(sizes, kind="stable")[:least].tolist()


def _check(splits: dict[Split, np.ndarray], labels: np.ndarray, classes: Sequence[str]) -> None:
    learned = set(labels[splits["train"]])
    absent = [name for label, name in enumerate(classes) if label not in learned]
    if absent:
        raise DataError(f"{NOT_LEARNED}: {shortened(absent)}")
    empty = [split for split in SPLITS if not len(splits[split])]
    if empty:
        raise DataError(f"no images in the {' and '.join(empty)} split")
