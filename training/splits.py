"""Which images train, which validate, which test: kept as the data brings them, made where it does not."""

from collections.abc import Sequence
from typing import Literal, get_args

import numpy as np
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)


class DataError(ValueError):
    """Data that no model can be trained on; the message says what was found and what is expected."""


def components(groups: Sequence[str], digests: Sequence[str]) -> np.ndarray:
    """Number the sets of images that must not be parted: those linked by a common group or by identical content.

    An empty group means none.
    """
    nodes = [("group", group) if group else ("alone", str(i)) for i, group in enumerate(groups)]
    numbers = {node: number for number, node in enumerate(dict.fromkeys(nodes))}
    contents = {digest: number for number, digest in enumerate(dict.fromkeys(digests), len(numbers))}
    by_group = np.array([numbers[node] for node in nodes])
    by_content = np.array([contents[digest] for digest in digests])
    side = len(numbers) + len(contents)
    links = coo_matrix((np.ones(len(nodes)), (by_group, by_content)), shape=(side, side))
    _, component = connected_components(links, directed=False)
    together: np.ndarray = component[by_group].astype(np.int64)
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


def _check(splits: dict[Split, np.ndarray], labels: np.ndarray, classes: Sequence[str]) -> None:
    learned = set(labels[splits["train"]])
    absent = [name for label, name in enumerate(classes) if label not in learned]
    if absent:
        raise DataError(f"classes without a training image: {', '.join(absent)}")
    empty = [split for split in SPLITS if not len(splits[split])]
    if empty:
        raise DataError(f"no images in the {' and '.join(empty)} split")
