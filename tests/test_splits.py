import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from training.splits import SPLITS, DataError, complete, components

FRACTIONS = {"val_fraction": 0.15, "test_fraction": 0.15}


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
    digests = [str(number) for number in rng.integers(0, 2 * count, count)]
    component = components(groups, digests)
    for i in range(count):
        for j in range(i):
            if groups[i] == groups[j] != "" or digests[i] == digests[j]:
                assert component[i] == component[j]
    names = [str(label) for label in range(num_classes)]
    try:
        made = complete([None] * count, labels, component, names, **FRACTIONS, seed=seed)
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
    component = components([""] * len(labels), [str(i) for i in range(len(labels))])
    made = complete([None] * len(labels), labels, component, "abc", **FRACTIONS, seed=seed)
    assert np.bincount(labels[made["test"]]).tolist() == [150, 15, 3]
    assert np.bincount(labels[made["val"]]).tolist() == [150, 15, 3]


def test_what_the_data_brings_is_kept_and_its_copies_are_left_alone() -> None:
    labels = np.arange(40) % 2
    given_splits = ["val" if i < 10 else None for i in range(40)]
    digests = [str(i) for i in range(40)]
    digests[20] = digests[0]  # a training image that is also in the validation split
    made = complete(given_splits, labels, components([""] * 40, digests), "ab", **FRACTIONS, seed=0)
    assert made["val"].tolist() == list(range(10))
    assert 20 in made["train"]


def test_two_images_of_a_class_train_and_test() -> None:
    labels = np.array([0] * 20 + [1] * 2)
    component = components([""] * 22, [str(i) for i in range(22)])
    made = complete([None] * 22, labels, component, "ab", **FRACTIONS, seed=0)
    assert np.bincount(labels[made["train"]])[1] == np.bincount(labels[made["test"]])[1] == 1
