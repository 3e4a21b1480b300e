import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from serving.contract.decode import decode
from tests.support.datasets import counts, manifest, of, write
from training.data.sources.source import SPLITS
from training.errors import DataError


def test_class_folders_with_awkward_names(photos: Path) -> None:
    dataset = of(photos)
    assert dataset.classes == ("Red rash", "blue", "green leaf")
    assert dataset.images.shape == (90, 64, 64, 3)
    assert counts(dataset) == {"train": 66, "val": 12, "test": 12}
    index = next(i for i, key in enumerate(dataset.keys) if "nested folder/long" in key)
    data = (photos / dataset.keys[index]).read_bytes()
    assert np.array_equal(dataset.images[index], dataset.preprocessing(data))
    assert np.array_equal(dataset.original(index), decode(data))


def test_split_folders_are_kept_and_a_missing_one_is_made_of_the_training_images(tmp_path: Path) -> None:
    for split, count in {"train": 20, "val": 5, "test": 4}.items():
        for label in ("a", "b"):
            for number in range(count):
                write(tmp_path / split / label / f"{split}{number}.png", number)
    assert counts(of(tmp_path)) == {"train": 40, "val": 10, "test": 8}
    shutil.rmtree(tmp_path / "test")
    dataset = of(tmp_path)
    assert counts(dataset) == {"train": 34, "val": 10, "test": 6}
    assert all(dataset.keys[i].startswith("val/") for i in dataset.splits["val"])
    assert all(dataset.keys[i].startswith("train/") for i in dataset.splits["test"])


def test_manifest_with_splits_and_groups(tmp_path: Path) -> None:
    rows = []
    for number in range(60):
        path = write(tmp_path / "pictures" / f"{number} x.PNG", number)
        rows.append({"path": f"pictures/{path.name}", "label": "ab"[number % 2], "group": f"patient {number // 6}"})
    dataset = of(manifest(tmp_path / "m.csv", rows))
    owner = {dataset.keys[i]: split for split in SPLITS for i in dataset.splits[split]}
    for group in {row["group"] for row in rows}:
        assert len({owner[row["path"]] for row in rows if row["group"] == group}) == 1
    assert all(counts(dataset).values())
    given = [row | {"split": ("train", "Valid", "test")[number % 3], "group": ""} for number, row in enumerate(rows)]
    assert counts(of(manifest(tmp_path / "m.csv", given))) == {"train": 20, "val": 20, "test": 20}


@pytest.mark.parametrize("shape", [(28, 28), (28, 28, 1), (40, 28, 3)])
def test_npz_gray_or_rgb_of_any_size(tmp_path: Path, shape: tuple[int, ...]) -> None:
    rng = np.random.default_rng(0)
    arrays: dict[str, Any] = {}
    for split, count in {"train": 40, "val": 10, "test": 12}.items():
        arrays[f"{split}_images"] = rng.integers(0, 256, (count, *shape), dtype=np.uint8)
        arrays[f"{split}_labels"] = (np.arange(count) % 2).reshape(-1, 1)
    np.savez(tmp_path / "set.npz", **arrays)
    dataset = of(tmp_path / "set.npz")
    side = 28 if shape[:2] == (28, 28) else 64
    assert dataset.images.shape == (62, side, side, 3)
    assert counts(dataset) == {"train": 40, "val": 10, "test": 12}
    assert dataset.classes == ("0", "1")
    gray = of(tmp_path / "set.npz", channels=1, image_size=20)
    assert gray.images.shape == (62, 20, 20, 1)


@pytest.mark.slow
def test_numbers_sort_as_numbers_and_a_hundred_classes_work(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(100), 4)
    images = rng.integers(0, 256, (400, 12, 12), dtype=np.uint8)
    np.savez(tmp_path / "set.npz", train_images=images, train_labels=labels)
    dataset = of(tmp_path / "set.npz")
    assert dataset.classes == tuple(str(label) for label in range(100))
    assert counts(dataset) == {"train": 200, "val": 100, "test": 100}


def test_data_that_cannot_be_trained_on_gets_a_sentence(tmp_path: Path) -> None:
    def folder(name: str, **classes: int) -> Path:
        for label, count in classes.items():
            for number in range(count):
                write(tmp_path / name / label / f"{number}.png", number)
        (tmp_path / name).mkdir(exist_ok=True)
        return tmp_path / name

    rows = [{"path": f"gone {number}.png", "label": "a"} for number in range(25)]
    present = folder("present", a=4)
    empty_label = [{"path": "present/a/0.png", "label": ""}]
    odd_split = [{"path": "present/a/0.png", "label": "a", "split": "holdout"}]
    twice = [{"path": "present/a/0.png", "label": label} for label in "ab"]
    alone = [{"path": f"present/a/{number}.png", "label": "ab"[number % 2], "group": "one"} for number in (0, 2, 1, 3)]
    np.savez(tmp_path / "empty.npz", nothing=np.zeros(3))
    np.savez(tmp_path / "float.npz", train_images=np.zeros((4, 8, 8)), train_labels=np.arange(4))
    np.savez(tmp_path / "short.npz", train_images=np.zeros((4, 8, 8), np.uint8), train_labels=np.arange(3))
    objects = np.array([[1], "a"], dtype=object)
    np.savez(tmp_path / "objects.npz", train_images=objects, train_labels=np.arange(2), allow_pickle=True)
    (tmp_path / "broken.npz").write_bytes(b"PK\x03\x04 broken")
    (tmp_path / "data.txt").touch()
    refused = {
        "no such file": tmp_path / "absent",
        "no images": folder("empty"),
        "only one class": present,
        "one image only.*: b": folder("single", a=9, b=1),
        "no column label": manifest(tmp_path / "a.csv", [{"path": "x"}]),
        "do not exist in .*: 25\n  line 2: gone 0.png(.|\n)*gone 19.png\n  and 5 more": manifest(
            tmp_path / "b.csv", rows
        ),
        "without a label": manifest(tmp_path / "c.csv", empty_label),
        "splits other than": manifest(tmp_path / "d.csv", odd_split),
        "more than once": manifest(tmp_path / "e.csv", twice),
        "one group": manifest(tmp_path / "f.csv", alone),
        "no arrays train_images": tmp_path / "empty.npz",
        "float64": tmp_path / "float.npz",
        "3 labels for 4 images": tmp_path / "short.npz",
        "not an .npz file": tmp_path / "broken.npz",
        "Python objects": tmp_path / "objects.npz",
        "expected a folder": tmp_path / "data.txt",
    }
    for reason, data in refused.items():
        with pytest.raises(DataError, match=reason):
            of(data)


def test_a_file_name_that_no_report_could_hold_is_refused(tmp_path: Path) -> None:
    for number in range(8):
        write(tmp_path / "data" / "ab"[number % 2] / f"{number}.png", number)
    (tmp_path / "data" / "a" / "0.png").rename(tmp_path / "data" / "a" / os.fsdecode(b"gr\xfcn.png"))
    with pytest.raises(DataError, match=r"data: file names that are not UTF-8: 1\n  'a/gr\\udcfcn\.png'"):
        of(tmp_path / "data")
