"""Small data sets on disk, and how they are divided."""

import csv
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import cv2
import numpy as np

from training.data.dataset import Dataset, load_dataset
from training.data.sources.source import SPLITS
from training.options.config import TrainConfig


def write(path: Path, value: int, size: tuple[int, int] = (20, 20)) -> Path:
    """A picture of noise around `value`, its content unique to value and path."""
    rng = np.random.default_rng([value, *"/".join(path.parts[-3:]).encode()])
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), rng.integers(0, 256, (*size, 3), dtype=np.uint8))
    return path


def manifest(path: Path, rows: list[dict[str, str]]) -> Path:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    return path


def of(data: Path | None, **options: Any) -> Dataset:
    with TemporaryDirectory() as out:
        return load_dataset(TrainConfig(data=data, out=Path(out), **options))


def counts(dataset: Dataset) -> dict[str, int]:
    return {split: len(dataset.splits[split]) for split in SPLITS}
