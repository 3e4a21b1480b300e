from pathlib import Path

import numpy as np
import pytest

from tests.support import datasets
from training.data.dataset import Dataset
from training.errors import ConfigError
from training.metrics.slices import Slices, slices


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """60 images of two classes with columns of all kinds; the last image cannot be read."""
    root = tmp_path_factory.mktemp("sliced")
    rows = []
    for number in range(60):
        datasets.write(root / f"{number}.png", number)
        rows.append(
            {
                "path": f"{number}.png",
                "label": ("cat", "dog")[number % 2],
                "Site ": ("B", " A")[number % 3 == 0],
                "age": "" if number == 4 else str(number / 2),
                "grade": str((8, 10, 9)[number % 3]),
                "patient": f"p{number}",
                "scanner": "one",
                "split": ("train", "val", "test")[number // 20],
                "": "no name",
            }
        )
    (root / "59.png").write_bytes(b"no image")
    rows.append(rows.pop(59) | {"path": "59.png"})
    for extra in range(60, 200):  # so that one broken image is less than 1 %
        datasets.write(root / f"{extra}.png", extra % 250)
        rows.append(rows[0] | {"path": f"{extra}.png", "age": "5", "split": "test"})
    return datasets.of(datasets.manifest(root / "m.csv", rows), image_size=16)


def found(dataset: Dataset, asked: str | None = None) -> Slices:
    return slices(dataset, asked, dataset.splits["test"])


def test_columns_follow_their_images_past_the_unreadable_one(dataset: Dataset) -> None:
    assert set(dataset.columns) == {"site", "age", "grade", "patient", "scanner"}
    assert len(dataset.keys) == 199
    for key, site in zip(dataset.keys[:59], dataset.columns["site"], strict=False):
        assert site == ("B", "A")[int(key.removesuffix(".png")) % 3 == 0], key


def test_what_divides_is_taken_and_what_does_not_is_named(dataset: Dataset) -> None:
    every = found(dataset)
    by_name = {each.column: each for each in every.columns}
    assert list(by_name) == ["site", "age", "grade"]
    assert by_name["site"].values == ("A", "B")
    assert by_name["grade"].values == ("8", "9", "10"), "numbers by size"
    assert every.left_out == {
        "patient": "59 values that are not all numbers",
        "scanner": "all images have the same value",
    }


def test_many_numbers_are_binned_by_the_quartiles_of_the_training_split(dataset: Dataset) -> None:
    [age] = found(dataset, "age").columns
    ages = np.array([float(value or "nan") for value in dataset.columns["age"]])
    edges = np.nanquantile(ages[dataset.splits["train"]], [0.25, 0.5, 0.75])
    low, middle, high = (f"{edge:g}" for edge in edges)
    assert age.values == (
        f"up to {low}", f"over {low} to {middle}", f"over {middle} to {high}", f"over {high}", "not given"
    )  # fmt: skip
    assert age.binned
    expected = np.where(np.isnan(ages), 4, (ages[:, None] > edges).sum(1))
    assert np.array_equal(age.codes, expected)
    assert np.bincount(age.codes[dataset.splits["train"]])[:4].max() <= 6, "quarters of the training split"


def test_none_is_no_column_and_names_are_cleaned(dataset: Dataset) -> None:
    assert found(dataset, "none") == Slices()
    assert [each.column for each in found(dataset, " Grade,SITE,grade").columns] == ["grade", "site"]


@pytest.mark.parametrize(
    ("asked", "reason"),
    [
        ("sites", "--slices sites: .* has no such column; there are site, "),
        ("site,label", "--slices label: .* has no such column"),
        ("patient", "--slices patient: 59 values that are not all numbers; expected 2 to 20 values, or numbers"),
        ("scanner", "all images have the same value"),
    ],
)
def test_a_column_that_cannot_be_followed_is_refused(dataset: Dataset, asked: str, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        found(dataset, asked)


def test_data_without_columns_has_none_to_name(photos: Path) -> None:
    plain = datasets.of(photos, image_size=16)
    assert found(plain) == Slices()
    with pytest.raises(ConfigError, match="it has none beside path, label, split and group"):
        found(plain, "site")
