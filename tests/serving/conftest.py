"""A run whose model says which images are unlike those of its training, for all tests of what it says."""

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from tests.support.bars import OPTIONS


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """360 pictures of one bright bar on noise, in three classes by the direction of the bar."""
    root = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    for number in range(360):
        label = ("across", "down", "slanted")[number % 3]
        pixels = rng.integers(0, 90, (16, 16, 3), dtype=np.uint8)
        ends = {"across": ((1, 8), (14, 8)), "down": ((8, 1), (8, 14)), "slanted": ((1, 1), (14, 14))}[label]
        cv2.line(pixels, *ends, (220, 220, 220), 3)
        (root / label).mkdir(exist_ok=True)
        assert cv2.imwrite(str(root / label / f"{number}.png"), pixels)
    return root


@pytest.fixture(scope="session")
def aware(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on them, with 108 validation and 108 test images."""
    from training.options.config import TrainConfig
    from training.train import train

    held_out: dict[str, Any] = {"val_fraction": 0.3, "test_fraction": 0.3}
    out = tmp_path_factory.mktemp("runs")
    return train(TrainConfig(data=pictures, out=out, name="aware", quantize="int8", **held_out, **OPTIONS))
