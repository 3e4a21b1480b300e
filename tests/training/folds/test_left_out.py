"""`--leave-out`: a site that other sites do not prepare for is shown by its gap; one like the others has none."""

import csv
import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from tests.support.datasets import manifest
from tests.support.trainer import command
from training.__main__ import main

OPTIONS = ["--model", "mlp", "--hidden", "16", "--image-size", "12", "--epochs", "6", "--workers", "0"]


@pytest.fixture(scope="module")
def sites(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """240 images, half of a class. Sites A and B show the class in red, site C in blue; the camera says nothing."""
    root = tmp_path_factory.mktemp("sites")
    rng = np.random.default_rng(0)
    rows = []
    for number in range(240):
        label, site = ("dark", "bright")[number % 2], "ABC"[number // 2 % 3]
        pixels = rng.normal(125, 30, (12, 12, 3))
        pixels[..., 0 if site == "C" else 2] += {"dark": -35, "bright": 35}[label]  # OpenCV: blue first
        assert cv2.imwrite(str(root / f"{number}.png"), np.clip(pixels, 0, 255).astype(np.uint8))
        # Two groups have images of two sites; one image has no age.
        group = "both" if number in (0, 2) else "too" if number in (1, 3) else ""
        camera, age = ("x", "y", "z")[number // 6 % 3], "" if number == 7 else "40"
        row = {"path": f"{number}.png", "label": label, "group": group, "site": site, "camera": camera}
        rows.append(row | {"age": age, "lens": "1"})
    return manifest(root / "sites.csv", rows)


def arguments(sites: Path, out: Path, *options: str) -> list[str]:
    return ["folds", "--data", str(sites), "--out", str(out), *OPTIONS, *options]


@pytest.fixture(scope="module")
def made(sites: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ordinary folds, then those by site, then those by camera."""
    out = tmp_path_factory.mktemp("folds")
    for options in (["--folds", "3"], ["--leave-out", "Site"], ["--leave-out", "camera"]):
        done = command(*arguments(sites, out, *options))
        assert done.returncode == 0, done.stderr
    return out / "folds"


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def facts(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "folds.json").read_text())
    return found


@pytest.mark.long
def test_a_site_unlike_the_others_has_a_gap_and_a_camera_has_none(made: Path) -> None:
    by_site = facts(made / "sites-by-site")["left_out"]
    scores = {each["value"]: each for each in by_site["values"]}
    assert list(scores) == ["A", "B", "C"]
    assert [each["accuracy"]["images"] for each in by_site["values"]] == [80, 80, 80]
    assert scores["C"]["balanced_accuracy"] < 0.7
    assert scores["C"]["gap"]["interval"][1] < -0.2
    assert by_site["gap"]["interval"][1] < 0
    assert "Accuracy differs by site" in by_site["warning"]
    by_camera = facts(made / "sites-by-camera")["left_out"]
    assert by_camera["warning"] is None
    assert all(each["gap"]["interval"][0] <= 0 <= each["gap"]["interval"][1] for each in by_camera["values"])
    page = (made / "sites-by-site" / "folds.html").read_text()
    assert by_site["warning"] in page.split("<h2>")[0]
    assert "Leaving the site out changes it by -0." in page


@pytest.mark.long
def test_no_model_has_learned_from_the_value_it_is_tested_on(made: Path, sites: Path) -> None:
    site = {row["path"]: row["site"] for row in rows(sites)}
    seen = set()
    for number, value in enumerate("ABC", 1):
        run = made / "sites-by-site" / "runs" / f"{number}-{value}"
        tested = [row["path"] for row in rows(run / "predictions.csv")]
        assert {site[path] for path in tested} == {value}
        report = json.loads((run / "report" / "report.json").read_text())
        learned = sum(each["train"] + each["val"] for each in report["data"]["classes"])
        # Of the two groups of A and B, the images of the other site leave training.
        assert learned == 160 - (2 if value in "AB" else 0)
        seen |= set(tested)
    assert len(seen) == 240


@pytest.mark.long
def test_the_gap_is_compared_only_with_the_same_options(made: Path, sites: Path) -> None:
    out = made.parent
    done = command(*arguments(sites, out, "--leave-out", "camera", "--seed", "1", "--name", "other"))
    assert done.returncode == 0, done.stderr
    assert "There are no ordinary folds to compare with." in done.stdout
    assert "2 groups or pictures, 4 images" not in done.stdout  # they differ by site, not by camera
    assert facts(made / "other-by-camera")["left_out"]["gap"] is None


@pytest.mark.parametrize(
    ("options", "code", "expected"),
    [
        (["--leave-out", "sit"], 2, "has no such column; there are site, "),
        (["--leave-out", "lens"], 2, "expected 2 values or more, got 1 for all images"),
        (["--leave-out", "age"], 3, "images without a value of age: 1\n  7.png"),
        (["--leave-out", "site", "--leaks", "error"], 3, "2 groups or pictures, 4 images such as 0.png, 1.png, 2.png"),
    ],
)
def test_what_makes_no_parts_costs_no_training(
    options: list[str], code: int, expected: str, sites: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments(sites, tmp_path, *options)) == code
    assert expected in capsys.readouterr().err
    assert not list(tmp_path.rglob("model.onnx"))
    assert bool(list(tmp_path.glob(".cache/contents-*"))) == (options[1] != "sit"), "that a list shows needs no images"


@pytest.mark.long
def test_groups_of_several_values_are_announced(sites: Path, tmp_path: Path) -> None:
    announced = command(*arguments(sites, tmp_path, "--leave-out", "site", "--lr", "1e30", "--jobs", "1"))
    assert announced.returncode == 4
    assert "warning: 2 groups or pictures, 4 images such as 0.png, 1.png, 2.png, have several values of site" in (
        announced.stdout
    )
    assert "A (80 images), B (80 images), C (80 images)" in announced.stdout
