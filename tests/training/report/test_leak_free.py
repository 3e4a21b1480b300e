"""Scores as given and leak-free, where the splits of the data share pictures."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.support.promotions import latest, log, make
from training.__main__ import main


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
def test_the_rule_of_promotion_judges_what_does_not_leak(
    leaking: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = tmp_path / "runs"
    run = make(leaking, runs, name="warned", leaks="warn")
    [judged] = log(runs)
    assert judged["numbers"]["images"] == 18
    assert judged["numbers"]["balanced_accuracy"] == report(run)["leak_free"]["scores"]["balanced_accuracy"]
    said = "The rule leaves out 6 of the 24 test images"
    assert report(run)["promotion"]["warnings"][0].startswith(said)
    assert said in (run / "report" / "report.html").read_text().partition("<!-- promotion section -->")[2]
    assert said in (run / "report" / "report.md").read_text()
    assert latest(runs) == "warned"
    (runs / "latest").unlink()
    assert main(["promote", str(run)]) == 0
    assert log(runs)[-1]["numbers"] == judged["numbers"], "by the record, too"
    assert f"warning: {said}" in capsys.readouterr().out


@pytest.mark.slow
def test_there_is_one_score_where_leaks_are_dropped(leaking: Path, tmp_path: Path) -> None:
    run = make(leaking, tmp_path / "runs", name="dropped")
    assert report(run)["leak_free"] is None
    assert report(run)["scores"]["test"]["images"] == 24
    assert "leak-free" not in (run / "report" / "report.html").read_text()
