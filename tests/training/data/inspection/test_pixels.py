from pathlib import Path

import numpy as np
import pytest

from tests.support.datasets import write
from training.data import formats
from training.data.cache import Cache
from training.data.inspection.image_file import to_rgb
from training.data.inspection.pixels import inspect
from training.options.config import TrainConfig


@pytest.mark.parametrize("odd_one", [0, 5, 11])
def test_one_image_of_another_size_means_64_px_wherever_it_is(odd_one: int, tmp_path: Path) -> None:
    for number in range(12):
        side = 30 if number == odd_one else 20
        write(tmp_path / "data" / "ab"[number % 2] / f"{number:02}.png", number, (side, side))
    source = formats.find(tmp_path / "data", Cache())
    inspected = inspect(source, TrainConfig(), Cache(tmp_path / "cache"))
    assert inspected.sizing.side == inspected.preprocessing.height == 64
    expected = [inspected.preprocessing.fitted(to_rgb(source.read(i))) for i in range(12)]
    assert np.array_equal(inspected.pixels, expected)
