from pathlib import Path

import numpy as np
import pytest

from training.data.cache import Cache
from training.data.formats import find
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
    assert find(tmp_path / "x.npz", Cache()).labels == names


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
        find(tmp_path / "x.npz", Cache())
