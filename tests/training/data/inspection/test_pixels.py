from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.support.datasets import write
from training.data import formats
from training.data.cache import Cache
from training.data.inspection.image_file import to_rgb
from training.data.inspection.pixels import inspect_pixels
from training.errors import DataError
from training.options.config import TrainConfig


@pytest.mark.parametrize("odd_one", [0, 5, 11])
def test_one_image_of_another_size_means_64_px_wherever_it_is(odd_one: int, tmp_path: Path) -> None:
    for number in range(12):
        side = 30 if number == odd_one else 20
        write(tmp_path / "data" / "ab"[number % 2] / f"{number:02}.png", number, (side, side))
    source = formats.find_source(tmp_path / "data", Cache())
    inspected = inspect_pixels(source, TrainConfig(), Cache(tmp_path / "cache"))
    assert inspected.sizing.side == inspected.preprocessing.height == 64
    expected = [inspected.preprocessing.fitted(to_rgb(source.read(i))) for i in range(12)]
    assert np.array_equal(inspected.pixels, expected)


def test_an_image_too_long_to_be_cropped_is_named(tmp_path: Path) -> None:
    for number in range(12):
        write(
            tmp_path / "data" / "ab"[number % 2] / f"{number:02}.png", number, (8, 65_000) if number == 7 else (20, 20)
        )
    source = formats.find_source(tmp_path / "data", Cache())
    with pytest.raises(
        DataError, match=r"b/07\.png: the image is .* at most 40 megapixels .* --fit pad takes it whole"
    ):
        inspect_pixels(source, TrainConfig(fit="crop", image_size=96), Cache(tmp_path / "cache"))


def test_a_disk_without_room_for_the_pixels_is_refused_before_any_image_is_read(tmp_path: Path) -> None:
    for number in range(12):
        write(tmp_path / "data" / "ab"[number % 2] / f"{number:02}.png", number)
    found, positions = formats.find_source(tmp_path / "data", Cache()), list[int]()

    def read(position: int) -> bytes | np.ndarray:
        positions.append(position)
        return found.read(position)

    expected = r"12 images of 2000000 x 2000000 x 3 need 144,000,000 MB, of which [\d,]+ MB are free; --cache names an"
    with pytest.raises(OSError, match=expected):
        inspect_pixels(replace(found, read=read), TrainConfig(image_size=2_000_000), Cache(tmp_path / "cache"))
    assert positions == [0], "whose size decides the model"
    assert not [path for path in (tmp_path / "cache").iterdir() if path.is_dir()]
