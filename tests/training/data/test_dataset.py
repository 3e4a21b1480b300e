import csv
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest

from serving.contract.decode import MAX_BYTES
from tests.support import forged
from tests.support.datasets import counts, manifest, of, write
from tests.support.paths import SHARED
from training.data.dataset import load_dataset
from training.data.sources.source import SPLITS
from training.errors import DataError
from training.options.config import TrainConfig


@pytest.mark.slow
def test_without_data_the_digits_are_there_at_their_own_size() -> None:
    dataset = of(None)
    assert dataset.images.shape == (1797, 16, 16, 3)
    assert dataset.classes == tuple("0123456789")
    assert sum(counts(dataset).values()) == 1797
    for split in SPLITS:
        shares = np.bincount(dataset.labels[dataset.splits[split]]) / np.bincount(dataset.labels)
        assert np.ptp(shares) < 0.02, "stratified"


def test_groups_of_several_classes_stay_together_and_every_split_has_every_class(tmp_path: Path) -> None:
    rows = []
    for number in range(300):
        path = write(tmp_path / f"{number}.png", number)
        label = "abc"[(number % 10 > 5) + (number % 10 > 8)]
        rows.append({"path": path.name, "label": label, "group": f"patient {number * 7 % 300 // 10}"})
    dataset = of(manifest(tmp_path / "m.csv", rows))
    group = {row["path"]: row["group"] for row in rows}
    groups = [{group[dataset.keys[i]] for i in dataset.splits[split]} for split in SPLITS]
    assert sum(map(len, groups)) == 30
    for split in SPLITS:
        assert set(dataset.labels[dataset.splits[split]]) == {0, 1, 2}
    assert 25 <= counts(dataset)["test"] <= 65


def test_identical_content_is_never_parted(tmp_path: Path) -> None:
    for number in range(40):
        first = write(tmp_path / "ab"[number % 2] / f"{number}.png", number)
        shutil.copy(first, first.with_name(f"copy of {number}.png"))
    dataset = of(tmp_path)
    owner = {dataset.keys[i]: split for split in SPLITS for i in dataset.splits[split]}
    for number in range(40):
        folder = "ab"[number % 2]
        assert owner[f"{folder}/{number}.png"] == owner[f"{folder}/copy of {number}.png"]


def test_splits_follow_the_seed_and_nothing_else(photos: Path) -> None:
    first, again, other = of(photos), of(photos, image_size=24), of(photos, seed=1)
    assert all(np.array_equal(first.splits[split], again.splits[split]) for split in SPLITS)
    assert not np.array_equal(first.splits["test"], other.splits["test"])
    assert first.digest == again.digest != other.digest


@pytest.mark.parametrize(
    ("counts", "reason"),
    [
        ({"a": 6}, r"only one class \(a\)"),
        ({"a": 6, "b": 1}, "one image only.*: b$"),
        ({str(number): 1 for number in range(25)}, "one image only.*: 0, 1, 2, .*, 18, 19 and 5 more$"),
        ({"train/a": 4, "train/b": 4, "test/b": 2, "test/unknown": 2}, "classes without a training image: unknown$"),
    ],
)
def test_labels_that_no_model_learns_are_refused_before_the_images_are_read(
    counts: dict[str, int], reason: str, tmp_path: Path
) -> None:
    for name, count in counts.items():
        for number in range(count):
            write(tmp_path / "data" / name / f"{number}.png", number)
    config = TrainConfig(data=tmp_path / "data", out=tmp_path, cache=tmp_path / "cache")
    with pytest.raises(DataError, match=reason):
        load_dataset(config)
    assert not list(tmp_path.glob("cache/contents-*"))


def test_a_class_is_no_fault_where_none_of_its_images_can_be_read_or_a_fold_ignores_the_splits(tmp_path: Path) -> None:
    for number in range(120):
        write(tmp_path / "data" / "train" / "ab"[number % 2] / f"{number}.png", number)
    stray = tmp_path / "data" / "test" / "c" / "stray.png"
    stray.parent.mkdir(parents=True)
    stray.touch()
    write(tmp_path / "data" / "test" / "a" / "1.png", 1)
    assert of(tmp_path / "data").classes == ("a", "b")
    stray.unlink()
    for number in range(4):
        write(stray.with_name(f"{number}.png"), number)
    assert of(tmp_path / "data", fold="1/2").classes == ("a", "b", "c")


def test_a_few_unreadable_images_are_named_and_skipped_and_many_are_an_error(tmp_path: Path) -> None:
    for number in range(120):
        write(tmp_path / "ab"[number % 2] / f"{number}.png", number)
    broken = tmp_path / "a" / "broken.jpg"
    broken.write_bytes(b"not an image")
    dataset = of(tmp_path)
    assert dataset.unreadable.keys() == {"a/broken.jpg"}
    assert len(dataset.keys) == len(dataset.images) == 120
    assert np.array_equal(dataset.images[77], dataset.preprocessing.fitted(dataset.unresized(77)))
    (tmp_path / "a" / "empty.jpg").touch()
    with pytest.raises(DataError, match=r"2 of 122 images cannot be read, more than 1%\n  a/broken.jpg: the bytes"):
        of(tmp_path)


def test_an_image_that_claims_to_be_enormous_is_left_out_by_its_header(tmp_path: Path) -> None:
    for number in range(120):
        write(tmp_path / "ab"[number % 2] / f"{number}.png", number)
    (tmp_path / "a" / "bomb.png").write_bytes(forged.png_that_claims(50_000, 50_000))
    [(key, reason)] = of(tmp_path).unreadable.items()
    assert key == "a/bomb.png"
    assert reason == "the image is 50000 x 50000 px; at most 40 megapixels are accepted"
    (tmp_path / "a" / "bomb.png").write_bytes(forged.png_that_claims(70_000, 100))
    [reason] = of(tmp_path).unreadable.values()
    assert reason == "the image is 70000 x 100 px; the longest side accepted is 65,500 px"


def test_a_file_may_be_larger_than_what_the_service_takes(tmp_path: Path) -> None:
    for number in range(8):
        write(tmp_path / "ab"[number % 2] / f"{number}.png", number)
    pixels = np.random.default_rng(0).integers(0, 256, (2048, 2048, 3), dtype=np.uint8)
    cv2.imwrite(str(tmp_path / "a" / "scan.tif"), pixels, [cv2.IMWRITE_TIFF_COMPRESSION, 1])
    assert (tmp_path / "a" / "scan.tif").stat().st_size > MAX_BYTES
    dataset = of(tmp_path)
    assert (len(dataset.keys), dataset.unreadable) == (9, {})


@pytest.mark.long
@pytest.mark.skipif(not SHARED.exists(), reason="the shared data is not here")
def test_no_lesion_of_the_real_data_is_in_two_splits() -> None:
    data = SHARED / "data" / "ham7" / "manifest.csv"
    dataset = of(data, image_size=8)
    with data.open() as file:
        group = {row["path"]: row["group"] for row in csv.DictReader(file)}
    groups = {split: {group[dataset.keys[i]] for i in dataset.splits[split]} for split in SPLITS}
    assert not groups["train"] & groups["val"]
    assert not groups["train"] & groups["test"]
    assert not groups["val"] & groups["test"]
    for split in SPLITS:
        assert set(dataset.labels[dataset.splits[split]]) == set(range(7))
