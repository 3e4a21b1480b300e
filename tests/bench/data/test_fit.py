"""The comparison of --fit: proportions say nothing of the label in one set, and all of it in the other."""

import csv
from pathlib import Path

import numpy as np
import pytest

from serving.contract.decode import decode
from tests.bench.data.fit import MIXED, PLANTED, SCORES, WIDEST, Options, aspect, cut, make, table
from tests.support.datasets import write


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    lines = ["path,label,group"]
    for number in range(70):
        write(tmp_path / f"{number}.png", number, (40, 40))
        lines.append(f"{number}.png,{'ab'[number % 2]},g{number // 2}")
    (tmp_path / "manifest.csv").write_text("\n".join(lines) + "\n")
    return tmp_path / "manifest.csv"


def test_each_label_has_proportions_of_its_own_or_all_of_them() -> None:
    draws = np.linspace(0, 1, 11)
    assert max(aspect(draw, 0, 2) for draw in draws) == min(aspect(draw, 1, 2) for draw in draws) == 1
    every = [aspect(draw, None, 2) for draw in draws]
    assert (min(every), max(every)) == (1 / WIDEST, WIDEST)


@pytest.mark.parametrize(("ratio", "shape"), [(2.0, (20, 40)), (0.5, (40, 20)), (1.0, (40, 40))])
def test_the_centre_is_cut_out(ratio: float, shape: tuple[int, int]) -> None:
    pixels = np.zeros((40, 40, 3), np.uint8)
    pixels[18:22, 18:22] = 255
    part = cut(pixels, ratio)
    assert part.shape[:2] == shape
    assert part.sum() == pixels.sum()


def test_both_sets_have_the_same_images_in_the_same_splits(manifest: Path, tmp_path: Path) -> None:
    made = make(Options(data=manifest, out=tmp_path / "out"), 0)
    rows = {kind: list(csv.DictReader(path.read_text().splitlines())) for kind, path in made.items()}
    assert rows[MIXED] == rows[PLANTED]
    assert {row["split"] for row in rows[MIXED]} == {"train", "val", "test"}
    wider = {kind: [_wide(path.parent / row["path"]) for row in rows[kind]] for kind, path in made.items()}
    is_b = [row["label"] == "b" for row in rows[MIXED]]
    assert np.mean(np.equal(wider[PLANTED], is_b)) > 0.95  # nearly square ones are rounded to squares
    assert 0.2 < np.mean(np.equal(wider[MIXED], is_b)) < 0.8


def test_the_table_has_the_mean_and_the_range_of_the_seeds() -> None:
    seeds = [dict.fromkeys(SCORES, score) for score in (0.1, 0.2, 0.6)]
    assert list(table({"pad": seeds}))[2] == "| mixed | 0.300 (0.100 to 0.600) |"


def _wide(path: Path) -> bool:
    height, width = decode(path.read_bytes()).shape[:2]
    return bool(width > height)
