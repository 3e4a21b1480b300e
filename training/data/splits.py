"""Which images train, which validate, which test: kept as the data brings them, made where it does not."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from jaxtyping import Bool, Int64
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from training.config import Leaks
from training.errors import DataError

Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)

CONTRADICTION = "one picture under two labels"


@dataclass(frozen=True, kw_only=True)
class Division:
    """Which image is in which split, after what would make the scores lie was taken out."""

    found_in: list[Split]
    """The split of each image before anything was taken out."""
    splits: dict[Split, Int64[np.ndarray, " _"]]
    components: Int64[np.ndarray, " images"]
    """Images with one number share a group or show one picture: one draw for intervals."""
    removed: dict[int, str]
    """Images that were taken out of the splits, and why; not those that are more than was asked for."""


def divide(
    given: Sequence[Split | None],
    labels: Int64[np.ndarray, " images"],
    groups: Sequence[str],
    pairs: Int64[np.ndarray, "pairs 2"],
    classes: Sequence[str],
    *,
    leaks: Leaks,
    val_fraction: float,
    test_fraction: float,
    seed: int,
    images_per_class: int | None = None,
) -> Division:
    """Keep the splits that the data brings, make those that it does not, and part no group and no picture.

    `pairs` show one picture. With `leaks` of `drop`, a component that reaches into the test split leaves training and
    validation, one that reaches into validation leaves training, and a picture with two labels leaves all; else all
    stay where they are. Then all but `images_per_class` images of each class leave training. Raises DataError.
    """
    alone = [""] * len(labels)
    removed: dict[int, str] = {}
    if leaks == "drop":
        contradictory = _mixed(components(alone, pairs), labels)
        removed = {int(i): CONTRADICTION for i in np.flatnonzero(contradictory)}
    kept = np.array([i for i in range(len(labels)) if i not in removed], np.int64)
    together = components(groups, pairs)
    made = complete(
        [given[i] for i in kept],
        labels[kept],
        together[kept],
        classes,
        val_fraction=val_fraction,
        test_fraction=test_fraction,
        seed=seed,
    )
    owner = np.array([split or "train" for split in given], dtype=object)
    for split, members in made.items():
        owner[kept[members]] = split
    if leaks == "drop":
        for split, losing in (("test", ("train", "val")), ("val", ("train",))):
            held = together[kept[made[split]]]
            for i in np.flatnonzero(np.isin(together, held) & np.isin(owner, losing)):
                removed.setdefault(int(i), f"also in the {split} split")
    stays = np.array([i not in removed for i in range(len(labels))])
    divided = {split: np.flatnonzero((owner == split) & stays) for split in SPLITS}
    if images_per_class is not None:
        divided["train"] = fewer(divided["train"], labels, images_per_class, seed)
    _check(divided, labels, classes)
    return Division(found_in=list(owner), splits=divided, components=together, removed=dict(sorted(removed.items())))


def fewer(indices: np.ndarray, labels: np.ndarray, most: int, seed: int) -> np.ndarray:
    """At most so many of the images `indices` of each class, at random; one seed's 5 are among its 20."""
    drawn = np.random.default_rng(seed).permutation(indices)
    chosen = [drawn[labels[drawn] == label][:most] for label in np.unique(labels[indices])]
    return np.sort(np.concatenate(chosen))


def as_given(given: Sequence[Split | None], together: Int64[np.ndarray, " images"]) -> Division:
    """The splits as the data brings them, the rest for training, nothing taken out."""
    owner: list[Split] = [split or "train" for split in given]
    found = {split: np.flatnonzero([mine == split for mine in owner]) for split in SPLITS}
    return Division(found_in=owner, splits=found, components=together, removed={})


def components(groups: Sequence[str], pairs: Int64[np.ndarray, "pairs 2"]) -> Int64[np.ndarray, " images"]:
    """Number the sets of images that must not be parted: those linked by a common group or by a pair.

    An empty group means none.
    """
    first: dict[str, int] = {}
    by_group = [(first.setdefault(group, i), i) for i, group in enumerate(groups) if group]
    links = np.concatenate([np.array(by_group, np.int64).reshape(-1, 2), pairs])
    graph = coo_matrix((np.ones(len(links)), (links[:, 0], links[:, 1])), shape=(len(groups), len(groups)))
    _, component = connected_components(graph, directed=False)
    together: np.ndarray = component.astype(np.int64)
    return together


def complete(
    given: Sequence[Split | None],
    labels: np.ndarray,
    components: np.ndarray,
    classes: Sequence[str],
    *,
    val_fraction: float,
    test_fraction: float,
    seed: int,
) -> dict[Split, np.ndarray]:
    """Indices of each split; those that the data does not bring are made of its training images.

    Stratified by label, seeded, and no component (`components`) is ever parted. Raises DataError.
    """
    splits = np.array([split or "train" for split in given])
    shares: dict[Split, float] = {"test": test_fraction, "val": val_fraction}
    missing = {split: share for split, share in shares.items() if split not in splits}
    rng = np.random.default_rng(seed)
    # A component that reaches into a split the data brought stays where it is.
    settled = np.zeros(components.max() + 1, bool)
    settled[components[splits != "train"]] = True
    rarest_first = np.argsort(np.bincount(labels), kind="stable")
    for label in rarest_first if missing else ():
        mine = labels == label
        members, sizes = np.unique(components[mine], return_counts=True)
        if len(members) < 2:
            raise DataError(f"class {classes[label]}: its {sizes.sum()} images are one group, which cannot be split")
        drawn = rng.permutation(np.flatnonzero(~settled[members]))
        trains = settled[components[mine]] & (splits[mine] == "train")
        stays = int(not trains.any())  # one of them at least remains for training
        available = (splits[mine] == "train").sum()
        for split, share in missing.items():
            there = (splits[mine] == split).sum()
            within = np.searchsorted(np.cumsum(sizes[drawn]), share * available - there, side="right")
            taken, drawn = np.split(drawn, [min(max(within, int(there == 0)), max(len(drawn) - stays, 0))])
            splits[np.isin(components, members[taken])] = split
        settled[members] = True
    made = {split: np.flatnonzero(splits == split) for split in SPLITS}
    _check(made, labels, classes)
    return made


def _mixed(components: np.ndarray, labels: np.ndarray) -> Bool[np.ndarray, " images"]:
    """Which images belong to a component that has more than one label."""
    pairs = np.unique(np.stack([components, labels], axis=1), axis=0)
    numbers, counts = np.unique(pairs[:, 0], return_counts=True)
    mixed: np.ndarray = np.isin(components, numbers[counts > 1])
    return mixed


def _check(splits: dict[Split, np.ndarray], labels: np.ndarray, classes: Sequence[str]) -> None:
    learned = set(labels[splits["train"]])
    absent = [name for label, name in enumerate(classes) if label not in learned]
    if absent:
        raise DataError(f"classes without a training image: {', '.join(absent)}")
    empty = [split for split in SPLITS if not len(splits[split])]
    if empty:
        raise DataError(f"no images in the {' and '.join(empty)} split")
