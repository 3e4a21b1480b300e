"""The growth of training with its data: what is made, and what the table says."""

from pathlib import Path

import numpy as np
import pytest

from serving.contract.decode import decode
from tests.bench.data.scale import Figures, Options, make, run, table


def test_every_image_is_its_own_and_the_second_class_is_brighter(tmp_path: Path) -> None:
    data = make(tmp_path, 40, 32)
    images = {path: decode(path.read_bytes()) for path in sorted(data.rglob("*.jpg"))}
    assert len({pixels.tobytes() for pixels in images.values()}) == 40
    assert {pixels.shape for pixels in images.values()} == {(32, 32, 3)}
    means = [np.mean([pixels for path, pixels in images.items() if name in path.parts]) for name in "ab"]
    assert means[1] > means[0] + 10


def test_images_that_are_there_are_not_made_again(tmp_path: Path) -> None:
    path = next(make(tmp_path, 4, 32).rglob("*.jpg"))
    path.write_bytes(b"kept")
    make(tmp_path, 4, 32)
    assert path.read_bytes() == b"kept"


def test_a_row_has_both_runs() -> None:
    first = Figures(start_s=9, epoch_s=2, resident_mib=1000, private_mib=500)
    second = Figures(start_s=3, epoch_s=1, resident_mib=900, private_mib=400)
    assert list(table({1000: (first, second)}))[2] == "| 1,000 | 9.0 | 1,000 (500) | 3.0 | 900 (400) | 1.00 | 700 |"


@pytest.mark.long
def test_a_run_is_measured_and_stopped(tmp_path: Path) -> None:
    options = Options(folder=tmp_path, side=32, epochs=2)
    figures = run(options, make(tmp_path, 200, 32), "a")
    assert figures.start_s > 0 < figures.epoch_s
    assert figures.resident_mib > figures.private_mib > 100
