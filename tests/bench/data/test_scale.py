"""The growth of training with its data: what is made, and what the table says."""

from pathlib import Path

import numpy as np
import pytest

from serving.contract.decode import decode
from tests.bench.data.scale import Costs, Options, Row, draw, make, measure, table


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


FIRST = Costs(start_s=9, epoch_s=2, resident_mib=1000, private_mib=500)
SECOND = Costs(start_s=3, epoch_s=1, resident_mib=900, private_mib=400)


def test_a_line_has_both_runs() -> None:
    line = list(table([Row(1000, 2, FIRST, SECOND)]))[2]
    assert line == "| 1,000 | 2 | 9.0 | 1,000 (500) | 3.0 | 900 (400) | 1.00 | 700 |"


def test_the_figure_has_a_line_for_each_number_of_processes() -> None:
    rows = [Row(images, processes, FIRST, SECOND) for images in (1000, 10_000) for processes in (1, 2)]
    seconds, memory = draw(rows).axes
    labels = [line.get_label() for line in (*seconds.lines, *memory.lines)]
    assert labels == [
        *("first start", "second start", "an epoch"),
        *("first start, 2 processes", "second start, 2 processes", "an epoch, 2 processes"),
        *("resident", "private", "resident, 2 processes", "private, 2 processes"),
    ]
    assert np.asarray(memory.lines[0].get_ydata()).tolist() == [1000, 1000]


@pytest.mark.long
@pytest.mark.parametrize("processes", [1, 2])
def test_runs_are_measured_and_stopped(processes: int, tmp_path: Path) -> None:
    options = Options(folder=tmp_path, side=32, epochs=2)
    _, _, first, second = measure(options, 200, processes)
    for costs in (first, second):
        assert costs.start_s > 0 < costs.epoch_s
        assert costs.resident_mib > costs.private_mib > 100
    assert any((tmp_path / "cache").iterdir())
