"""Scores as given and leak-free, where the splits of the data share pictures."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.support.promotions import make


@pytest.fixture
def leaking(photos: Path, tmp_path: Path) -> Path:
    """Splits in folders; of the test images of each class, two are copies of training images."""
    for folder in sorted(path for path in photos.iterdir() if path.is_dir()):
        for number, image in enumerate(sorted(folder.rglob("*.*"))):
            split = "test" if number % 5 == 0 else "val" if number % 5 == 1 else "train"
            target = tmp_path / "data" / split / folder.name / f"{number}{image.suffix}"
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(image, target)
            if number in (2, 3):
                (tmp_path / "data" / "test" / folder.name).mkdir(parents=True, exist_ok=True)
                shutil.copy(image, tmp_path / "data" / "test" / folder.name / f"copy {number}{image.suffix}")
    return tmp_path / "data"


def report(run: Path) -> dict[str, Any]:
    facts: dict[str, Any] = json.loads((run / "report" / "report.json").read_text())
    return facts


@pytest.mark.slow
def test_both_scores_are_reported_where_leaks_stay(leaking: Path, tmp_path: Path) -> None:
    run = make(leaking, tmp_path / "runs", name="warned", leaks="warn", lr=1e-4, epochs=1)
    facts = report(run)
    free, given = facts["leak_free"], facts["scores"]["test"]
    assert (given["images"], free["scores"]["images"]) == (24, 18)
    # The same answers, counted here without the copies.
    rows = [line.split(",") for line in (run / "predictions.csv").read_text().splitlines()[1:]]
    own = [row for row in rows if "copy" not in row[0]]
    assert free["scores"]["accuracy"] == pytest.approx(sum(row[1] == row[2] for row in own) / 18)
    assert free["intervals"]["accuracy"][0] < free["scores"]["accuracy"] < free["intervals"]["accuracy"][1]
    [warning] = [text for text in facts["warnings"] if "Without them the accuracy is" in text]
    assert warning.startswith("6 of the 24 test images show a picture, or are of a group, that is in training")
    for name in ("report.html", "report.md"):
        page = (run / "report" / name).read_text()
        assert "leak-free" in page
        assert f"{free['scores']['balanced_accuracy']:.3f}" in page


@pytest.mark.slow
def test_there_is_one_score_where_leaks_are_dropped(leaking: Path, tmp_path: Path) -> None:
    run = make(leaking, tmp_path / "runs", name="dropped")
    assert report(run)["leak_free"] is None
    assert report(run)["scores"]["test"]["images"] == 24
    assert "leak-free" not in (run / "report" / "report.html").read_text()
