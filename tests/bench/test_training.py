"""The comparison of training loops: every loop trains, and its ratios are of the same round."""

import re
from pathlib import Path

import pytest

from tests.bench import training
from tests.bench.training import ASSIGNMENT, OURS, PLAIN, STEP, Options


@pytest.mark.long
def test_every_loop_trains_for_the_time_that_it_has(photos: Path, tmp_path: Path) -> None:
    options = Options(data=photos, rounds=2, seconds=0.2)
    figures = training.measure(options, "mlp", tmp_path)
    assert list(figures) == [ASSIGNMENT, PLAIN, OURS, STEP]
    assert all(len(values) == 2 and min(values) > 0 for values in figures.values())


def test_a_ratio_is_of_the_same_round() -> None:
    figures = {ASSIGNMENT: [1.0, 2.0, 4.0], PLAIN: [2.0, 4.0, 8.0], OURS: [10.0, 20.0, 20.0], STEP: [10.0, 30.0, 20.0]}
    lines = list(training.table("mlp", figures))
    ratios = {name: cells for line in lines[6:] for name, *cells in [re.findall(r"[^|]+", line.replace(" ", ""))]}
    assert ratios == {
        "step/ours": ["1.00", "1.00to1.50"],
        "ours/plain": ["5.00", "2.50to5.00"],
        "ours/assignment": ["10.00", "5.00to10.00"],
    }
