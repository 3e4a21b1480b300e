"""Subgroups in the reports of a run and of an evaluation: one that is planted, and one that says nothing."""

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from tests.support.datasets import manifest
from tests.support.trainer import command
from training.evaluate import EvaluateConfig, evaluate
from training.options.config import TrainConfig
from training.report.evaluation import evaluation_summary
from training.report.run import run_summary
from training.train import train


@pytest.fixture(scope="module")
def sites(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """300 images, dark or bright; of a third, from site C, the pixels say nothing of the label."""
    root = tmp_path_factory.mktemp("sites")
    rng = np.random.default_rng(0)
    rows = []
    for number in range(300):
        label, site = ("dark", "bright")[number % 2], "ABC"[number // 2 % 3]
        level = {"dark": 90, "bright": 160}[label] if site != "C" else 125
        pixels = np.clip(rng.normal(level, 30, (12, 12, 3)), 0, 255).astype(np.uint8)
        assert cv2.imwrite(str(root / f"{number}.png"), pixels)
        age, sex = str(rng.integers(20, 90)), "mf"[rng.integers(2)]
        rows.append({"path": f"{number}.png", "label": label, "site": site, "age": age, "sex": sex, "id": f"i{number}"})
    return manifest(root / "sites.csv", rows)


@pytest.fixture(scope="module")
def sliced(sites: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    options: dict[str, Any] = {"model": "mlp", "hidden": (16,), "image_size": 12, "epochs": 6, "augment": "none"}
    return train(TrainConfig(data=sites, out=tmp_path_factory.mktemp("runs"), name="x", test_fraction=0.4, **options))


@pytest.mark.slow
def test_a_planted_site_is_a_warning_and_a_clean_column_is_not(sliced: Path) -> None:
    report = json.loads((sliced / "report" / "report.json").read_text())
    by_name = {column["name"]: column for column in report["subgroups"]["columns"]}
    assert list(by_name) == ["site", "age", "sex"]
    assert report["subgroups"]["left_out"] == {"id": "300 values that are not all numbers"}
    assert by_name["site"]["gap"]["lowest"] == "C"
    assert by_name["site"]["gap"]["corrected_p"] < 0.01
    for clean in ("age", "sex"):
        assert by_name[clean]["gap"]["corrected_p"] > 0.05
    [warning] = [line for line in report["warnings"] if line.startswith("Accuracy differs by ")]
    assert "of C against 100.0% on the" in warning
    assert f"warning: {warning}" in run_summary(sliced)
    page = (sliced / "report" / "report.html").read_text()
    assert warning in page.split("<h2>")[0]
    assert "<summary>age" in page
    images = [sum(each["accuracy"]["images"] for each in column["subgroups"]) for column in by_name.values()]
    assert images == [report["scores"]["test"]["images"]] * 3


@pytest.mark.slow
def test_an_evaluation_compares_the_same_subgroups(sliced: Path, sites: Path, tmp_path: Path) -> None:
    def facts(name: str, **options: Any) -> dict[str, Any]:
        folder = evaluate(EvaluateConfig(run=sliced, data=sites, out=tmp_path / name, **options))
        assert (folder / "evaluation.html").read_text().count("<summary>sex") == (name == "every")
        return json.loads((folder / "evaluation.json").read_text())

    report, every = json.loads((sliced / "report" / "report.json").read_text()), facts("every")
    assert every["subgroups"] == report["subgroups"]
    assert every["findings"][0] in report["warnings"]
    assert every["findings"][0] in evaluation_summary(tmp_path / "every")
    assert facts("none", slices="none")["subgroups"] == {"columns": [], "left_out": {}}
    assert [column["name"] for column in facts("site", slices="site")["subgroups"]["columns"]] == ["site"]


@pytest.mark.long
def test_a_column_that_does_not_exist_is_refused_before_the_first_epoch(
    sliced: Path, sites: Path, tmp_path: Path
) -> None:
    begun = command("--data", sites, "--out", tmp_path, "--model", "mlp", "--name", "x", "--slices", "sex,sit")
    assert begun.returncode == 2
    assert "--slices sit: " in begun.stderr
    assert "there are site, " in begun.stderr
    assert "epoch" not in begun.stdout
    scored = command("evaluate", "--run", sliced, "--data", sites, "--out", tmp_path / "e", "--slices", "id")
    assert scored.returncode == 2
    assert "--slices id: 300 values that are not all numbers" in scored.stderr
    assert not (tmp_path / "e").exists()
