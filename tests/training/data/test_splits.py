from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from training.data.duplicates import Duplicates, Pair
from training.data.inspection.image_set import ImageSet
from training.data.sources.source import SPLITS, Split
from training.data.splits import Division, SplitPolicy, at_most, complete, components, divide
from training.errors import ConfigError, DataError
from training.options.choices import Leaks
from training.options.config import TrainConfig

POLICY = SplitPolicy(leaks="drop", val_fraction=0.15, test_fraction=0.15, seed=0)


def image_set(
    splits: list[Split | None],
    labels: np.ndarray,
    groups: list[str] | None = None,
    pairs: list[tuple[int, int]] | None = None,
) -> ImageSet:
    """Images that were not read: all that a division depends on."""
    near = [Pair(first=a, second=b, kind="near", change="", similarity=0.9) for a, b in pairs or []]
    return ImageSet(
        name="data",
        identity="",
        keys=[str(i) for i in range(len(labels))],
        labels=labels,
        classes=tuple("ab"),
        groups=groups or [""] * len(labels),
        source_splits=splits,
        files=[],
        duplicates=Duplicates(pairs=tuple(near), least_similarity=0.75),
        raw=lambda i: np.zeros((8, 8, 3), np.uint8),
    )


@settings(max_examples=200, deadline=None)
@given(
    count=st.integers(20, 400),
    num_classes=st.integers(2, 6),
    num_groups=st.integers(10, 300),
    seed=st.integers(0, 2**32 - 1),
)
def test_whatever_the_data_no_component_is_parted_and_every_image_is_somewhere(
    count: int, num_classes: int, num_groups: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, num_classes, count)
    groups = [f"group {number}" if number % 3 else "" for number in rng.integers(0, num_groups, count)]
    pairs = rng.integers(0, count, size=(rng.integers(0, count // 2), 2))
    component = components(groups, pairs)
    assert np.array_equal(component[pairs[:, 0]], component[pairs[:, 1]])
    for i in range(count):
        for j in range(i):
            if groups[i] == groups[j] != "":
                assert component[i] == component[j]
    names = [str(label) for label in range(num_classes)]
    try:
        made = complete([None] * count, labels, component, names, replace(POLICY, seed=seed))
    except DataError:
        return
    assert sorted(np.concatenate(list(made.values())).tolist()) == list(range(count))
    owners = {split: set(component[made[split]]) for split in SPLITS}
    assert not owners["train"] & owners["val"]
    assert not owners["train"] & owners["test"]
    assert not owners["val"] & owners["test"]
    assert set(labels[made["train"]]) == set(labels)


@pytest.mark.parametrize("seed", range(5))
def test_without_groups_the_splits_are_stratified(seed: int) -> None:
    labels = np.repeat([0, 1, 2], [1000, 100, 20])
    component = np.arange(len(labels))
    made = complete([None] * len(labels), labels, component, "abc", replace(POLICY, seed=seed))
    assert np.bincount(labels[made["test"]]).tolist() == [150, 15, 3]
    assert np.bincount(labels[made["val"]]).tolist() == [150, 15, 3]


def test_what_the_data_brings_is_kept_and_its_copies_are_left_alone() -> None:
    labels = np.arange(40) % 2
    given_splits: list[Split | None] = ["val" if i < 10 else None for i in range(40)]
    also_in_validation = np.array([[0, 20]])
    made = complete(given_splits, labels, components([""] * 40, also_in_validation), "ab", POLICY)
    assert made["val"].tolist() == list(range(10))
    assert 20 in made["train"]


@pytest.mark.parametrize("seed", range(5))
def test_a_component_larger_than_its_share_takes_no_split(seed: int) -> None:
    sizes = [60, 14, *[1] * 46]
    component = np.repeat(np.arange(len(sizes)), sizes)
    labels = np.zeros(len(component), np.int64)
    made = complete([None] * len(labels), labels, component, "a", replace(POLICY, seed=seed))
    assert len(made["test"]) == len(made["val"]) == 18
    large = np.repeat([0, 1, 2], [60, 30, 40])
    made = complete([None] * 130, np.zeros(130, np.int64), large, "a", replace(POLICY, seed=seed))
    assert {split: len(indices) for split, indices in made.items()} == {"train": 60, "test": 30, "val": 40}


@pytest.mark.parametrize("seed", range(5))
def test_components_of_at_most_half_a_share_are_drawn_in_order_until_one_does_not_fit(seed: int) -> None:
    """The splits of published figures were drawn so."""
    component = np.sort(np.random.default_rng(seed).integers(0, 70, 200))
    _, sizes = np.unique(component, return_counts=True)
    assert 2 <= sizes.max() <= 0.15 * 200 / 2
    drawn = np.random.default_rng(seed).permutation(len(sizes))
    for split in ("test", "val"):
        taken, drawn = np.split(drawn, [np.searchsorted(np.cumsum(sizes[drawn]), 0.15 * 200, side="right")])
        members = np.unique(component)[taken]
        made = complete([None] * 200, np.zeros(200, np.int64), component, "a", replace(POLICY, seed=seed))
        assert made[split].tolist() == np.flatnonzero(np.isin(component, members)).tolist()


def test_two_images_of_a_class_train_and_test() -> None:
    labels = np.array([0] * 20 + [1] * 2)
    component = np.arange(22)
    made = complete([None] * 22, labels, component, "ab", POLICY)
    assert np.bincount(labels[made["train"]])[1] == np.bincount(labels[made["test"]])[1] == 1


COUNTS: dict[Split, int] = {"train": 12, "val": 6, "test": 6}
ASSIGNED: list[Split | None] = [split for split, count in COUNTS.items() for _ in range(count)]
LABELS = np.arange(24) % 2
ALL = {"train": [*range(12)], "val": [*range(12, 18)], "test": [*range(18, 24)]}


def divided(pairs: list[tuple[int, int]], leaks: Leaks = "drop", groups: dict[int, str] | None = None) -> Division:
    named = [(groups or {}).get(i, "") for i in range(24)]
    return divide(image_set(ASSIGNED, LABELS, named, pairs), replace(POLICY, leaks=leaks))


def lists(division: Division) -> dict[str, list[int]]:
    return {split: indices.tolist() for split, indices in division.splits.items()}


def without(*taken: int) -> dict[str, list[int]]:
    return {split: [i for i in indices if i not in taken] for split, indices in ALL.items()}


@pytest.mark.parametrize(
    ("pairs", "taken"),
    [
        ([], ()),
        ([(0, 2)], ()),  # twice in one split
        ([(0, 12)], (0,)),  # training and validation
        ([(0, 18)], (0,)),  # training and test
        ([(12, 18)], (12,)),  # validation and test
        ([(0, 12), (12, 18)], (0, 12)),
        ([(0, 2), (2, 18)], (0, 2)),  # a chain: the first shows it too
        ([(0, 1)], (0, 1)),  # two labels in one split
        ([(0, 19)], (0, 19)),  # two labels in two splits
        ([(0, 2), (2, 19)], (0, 2, 19)),
    ],
)
def test_what_is_in_an_evaluation_split_leaves_training_and_two_labels_leave_both(
    pairs: list[tuple[int, int]], taken: tuple[int, ...]
) -> None:
    division = divided(pairs)
    assert lists(division) == without(*taken)
    assert tuple(division.removed) == taken
    assert division.assigned == ASSIGNED


def test_a_group_in_two_splits_leaves_training() -> None:
    division = divided([], groups={0: "patient", 1: "patient", 18: "patient"})
    assert lists(division) == without(0, 1)
    assert division.removed == {0: "also in the test split", 1: "also in the test split"}
    assert division.components[0] == division.components[1] == division.components[18]


@pytest.mark.parametrize("leaks", ["warn", "error"])
def test_nothing_is_taken_out_unless_asked_to(leaks: Leaks) -> None:
    assert lists(divided([(0, 18), (1, 2)], leaks)) == ALL


def test_a_class_that_loses_all_its_training_images_is_refused() -> None:
    leaking = [(i, 18 + i % 6) for i in range(0, 12, 2)]
    with pytest.raises(DataError, match="classes without a training image: a"):
        divided(leaking)


def test_fewer_images_are_drawn_of_each_class_those_of_five_among_those_of_twenty() -> None:
    labels = np.repeat([0, 1, 2], [300, 40, 8])
    indices = np.arange(0, 348, 2)
    few, more = (at_most(most, indices, labels, 7) for most in (5, 20))
    assert np.bincount(labels[few]).tolist() == [5, 5, 4]
    assert np.bincount(labels[more]).tolist() == [20, 20, 4]
    assert set(few) <= set(more) <= set(indices)
    assert not np.array_equal(at_most(5, indices, labels, 8), few)
    assert np.array_equal(at_most(1000, indices, labels, 7), indices)


def test_only_training_has_fewer_images() -> None:
    labels = np.arange(200) % 2
    images = image_set([None] * 200, labels)
    whole, thinned = (divide(images, replace(POLICY, images_per_class=most)) for most in (None, 6))
    assert np.bincount(labels[thinned.splits["train"]]).tolist() == [6, 6]
    assert thinned.removed == {}
    for split in ("val", "test"):
        assert np.array_equal(whole.splits[split], thinned.splits[split])


def test_a_contradictory_picture_makes_no_other_image_leak() -> None:
    groups = {4: "patient", 18: "patient"}
    division = divided([(18, 19)], groups=groups)
    assert lists(division) == without(18, 19)
    assert 4 in division.splits["train"]


def test_the_policy_of_a_card_is_that_of_its_training() -> None:
    config = TrainConfig(leaks="warn", val_fraction=0.2, seed=7, images_per_class=9)
    options = {"leaks": "warn", "val_fraction": 0.2, "test_fraction": 0.15, "seed": 7, "images_per_class": 9, "lr": 1}
    assert SplitPolicy.of(config) == SplitPolicy.of_card(options)
    with pytest.raises(ValueError, match="val_fraction"):
        SplitPolicy.of_card(options | {"val_fraction": None})


@pytest.mark.parametrize(
    ("labels", "pairs", "reason"),
    [
        ([0, 1, 0, 1], [(0, 1), (2, 3)], "every image shows a picture that is also under another label; none is left"),
        ([0, 1, 0, 0, 0], [(0, 1)], "every image of b shows"),
    ],
)
def test_nothing_left_after_contradictions_is_a_sentence(
    labels: list[int], pairs: list[tuple[int, int]], reason: str
) -> None:
    with pytest.raises(DataError, match=reason):
        divide(image_set([None] * len(labels), np.array(labels), pairs=pairs), POLICY)


@pytest.mark.parametrize("n", [2, 5])
def test_the_folds_part_all_images_and_no_group(n: int) -> None:
    """Whatever splits the source has; training and validation are drawn from the others."""
    rng = np.random.default_rng(n)
    labels = np.repeat([0, 1], 60)
    groups = [f"group {number}" for number in np.concatenate([rng.integers(0, 25, 60), rng.integers(25, 50, 60)])]
    images = image_set([None, "test", "val"] * 40, labels, groups)
    divisions = [divide(images, replace(POLICY, fold=f"{i}/{n}")) for i in range(1, n + 1)]
    tested = np.concatenate([division.splits["test"] for division in divisions])
    assert sorted(tested) == list(range(120))
    for division in divisions:
        assert not division.removed
        assert sum(len(indices) for indices in division.splits.values()) == 120
        for split in SPLITS:
            elsewhere = np.concatenate([division.splits[other] for other in SPLITS if other != split])
            assert not {groups[i] for i in division.splits[split]} & {groups[i] for i in elsewhere}
        shares = np.bincount(labels[division.splits["test"]], minlength=2) / 60
        assert shares == pytest.approx([1 / n, 1 / n], abs=0.12)


def test_a_class_of_fewer_groups_than_folds_is_refused() -> None:
    images = image_set([None] * 20, np.repeat([0, 1], [16, 4]))
    with pytest.raises(DataError, match="class b: 4 groups cannot be in 5 folds, at most in 4"):
        divide(images, replace(POLICY, fold="1/5"))


def test_a_value_of_a_column_is_the_test_split_and_a_group_of_two_values_leaves_training() -> None:
    columns = {"site": ["x"] * 8 + ["y"] * 12}
    groups = ["g" if i in (7, 8) else "" for i in range(20)]
    images = replace(image_set([None] * 20, np.arange(20) % 2, groups), columns=columns)
    kept = divide(images, replace(POLICY, fold="Site = x"))
    assert kept.splits["test"].tolist() == [*range(8)]
    assert kept.removed == {8: "also in the test split"}
    assert not divide(images, replace(POLICY, fold="site=x", leaks="warn")).removed
    with pytest.raises(ConfigError, match="no image has this value; there are"):
        divide(images, replace(POLICY, fold="site=z"))
