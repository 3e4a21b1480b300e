from pathlib import Path
from typing import Any

import numpy as np
import pytest

from training.data.cache import Cache
from training.data.formats import find_source
from training.errors import DataError

IMAGES = np.zeros((3, 8, 8), np.uint8)


@pytest.mark.parametrize(
    ("labels", "names"),
    [
        (np.array([b"cat", b"dog", "café".encode()]), ["cat", "dog", "café"]),
        (np.array(["cat ", " cat", "cafe\u0301"]), ["cat", "cat", "café"]),
        (np.array([0.0, 1.0, 12.0]), ["0", "1", "12"]),
        (np.array([[0], [1], [12]], np.uint8), ["0", "1", "12"]),
        (np.array([True, False, True]), ["True", "False", "True"]),
    ],
)
def test_labels_become_names(tmp_path: Path, labels: np.ndarray, names: list[str]) -> None:
    np.savez(tmp_path / "x.npz", train_images=IMAGES, train_labels=labels)
    assert find_source(tmp_path / "x.npz", Cache()).labels == names


@pytest.mark.parametrize(
    "labels",
    [
        np.array([0, np.nan, 1]),
        np.array([0, np.inf, 1]),
        np.array([0, 0.5, 1]),
        np.array(["cat", "", "dog"]),
        np.array(["cat", "  ", "dog"]),
        np.array([b"cat", b"", b"dog"]),
        np.array([b"cat", b"\xff", b"dog"]),
        np.array([1j, 2, 3]),
        np.array(["2026-01-01", "2026-01-02", "NaT"], "datetime64[D]"),
    ],
)
def test_labels_that_name_no_class_are_refused(tmp_path: Path, labels: np.ndarray) -> None:
    np.savez(tmp_path / "x.npz", train_images=IMAGES, train_labels=labels)
    with pytest.raises(DataError, match="train_labels"):
        find_source(tmp_path / "x.npz", Cache())


def test_splits_are_named_as_folders_are_and_what_is_not_read_is_noted(tmp_path: Path) -> None:
    words = ("training", "validation", "test", "eval")
    arrays: dict[str, Any] = {f"{word}_labels": np.arange(3) for word in words}
    arrays |= {f"{word}_images": np.full_like(IMAGES, number) for number, word in enumerate(words)}
    np.savez(tmp_path / "x.npz", **arrays)
    source = find_source(tmp_path / "x.npz", Cache())
    assert source.splits == ["train"] * 3 + ["val"] * 3 + ["test"] * 3
    assert [int(np.asarray(source.read(i)).max()) for i in (0, 3, 6)] == [0, 1, 2]
    [note] = source.notes
    assert note.endswith("split: eval_labels, eval_images.")
    np.savez(tmp_path / "y.npz", train_images=IMAGES, train_labels=np.arange(3), test_images=IMAGES)
    [note] = find_source(tmp_path / "y.npz", Cache()).notes
    assert note.endswith("split: test_images.")
    np.savez(tmp_path / "z.npz", train_images=IMAGES, train_labels=np.arange(3))
    assert not find_source(tmp_path / "z.npz", Cache()).notes
