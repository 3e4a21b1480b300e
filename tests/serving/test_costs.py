"""A model with a cost matrix, from the training to the service and the offline table."""

import base64
import csv
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import requests

from serving.contract.model import open_model
from tests.support.server import serving
from tests.support.trainer import command

MATRIX = ",Red rash,blue,green leaf,refer\nRed rash,0,5,5,0.001\nblue,1,0,1,0.001\ngreen leaf,1,1,0,0.001\n"


@pytest.fixture(scope="module")
def costly(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("costs")
    (out / "costs.csv").write_text(MATRIX)
    options = ["--model", "mlp", "--hidden", "8", "--image-size", "12", "--epochs", "1", "--workers", "0"]
    done = command("--data", photos, "--out", out, "--name", "x", "--costs", out / "costs.csv", *options)
    assert done.returncode == 0, done.stderr
    assert "The answers of the least expected cost cost 0.00" in done.stdout
    return out / "x"


@pytest.mark.slow
def test_service_table_and_report_have_the_answer_of_the_least_cost(costly: Path, photos: Path, tmp_path: Path) -> None:
    from serving.batch.__main__ import main

    card = open_model(costly / "model.onnx").card
    assert card.costs is not None
    assert card.costs.actions == ("Red rash", "blue", "green leaf", "refer")
    report = json.loads((costly / "report" / "report.json").read_text())
    assert sum(report["costs"]["actions"].values()) == report["scores"]["test"]["images"]
    assert report["costs"]["sentence"][1:] in (costly / "report" / "report.html").read_text()
    [image] = [path for path in photos.rglob("0.png") if "blue" in str(path)]
    with serving(costly / "model.onnx", BENTOML_HOME=str(tmp_path)) as address:
        reply = requests.post(f"{address}/predict", files={"image": image.read_bytes()}, timeout=30).json()
        metrics = requests.get(f"{address}/metrics", timeout=30).text
        tensor: dict[str, Any] = {"name": "files", "datatype": "BYTES", "shape": [1]}
        tensor["data"] = [base64.b64encode(image.read_bytes()).decode()]
        wanted: list[dict[str, Any]] = [
            {"name": "least_cost"},
            {"name": "least_cost", "parameters": {"binary_data": True}},
        ]
        answers = [
            requests.post(
                f"{address}/v2/models/twinlens/infer", json={"inputs": [tensor], "outputs": [output]}, timeout=30
            )
            for output in wanted
        ]
    assert answers[0].json()["outputs"] == [
        {"name": "least_cost", "datatype": "BYTES", "shape": [1], "data": ["refer"]}
    ]
    assert answers[1].content.endswith(b"\x05\0\0\0refer")
    with (costly / "predictions.csv").open(newline="") as file:
        assert Counter(row["least_cost"] for row in csv.DictReader(file)) == Counter(report["costs"]["actions"])
    probabilities = np.array([[reply["probabilities"][name] for name in card.classes]], np.float32)
    assert reply["least_cost"] == card.costs.actions[card.least_cost(probabilities)[0]] == "refer"
    assert 'twinlens_least_cost_total{action="refer"} 1.0' in metrics
    assert 'twinlens_least_cost_total{action="blue"} 0.0' in metrics
    assert main(["--model", str(costly / "model.onnx"), str(photos), "--out", str(tmp_path / "t.csv")]) == 0
    with (tmp_path / "t.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["least_cost"] for row in rows} <= set(card.costs.actions)
    assert len(rows) == 90


@pytest.mark.slow
def test_an_evaluation_takes_costs_of_its_own(costly: Path, photos: Path, tmp_path: Path) -> None:
    (tmp_path / "own.csv").write_text(MATRIX.replace(",0.001", ",100"))
    done = command(
        "evaluate", "--run", costly, "--data", photos, "--costs", tmp_path / "own.csv", "--out", tmp_path / "e"
    )
    assert done.returncode == 0, done.stderr
    facts = json.loads((tmp_path / "e" / "evaluation.json").read_text())
    assert facts["costs"]["actions"]["refer"] == 0
    with (tmp_path / "e" / "predictions.csv").open(newline="") as file:
        assert "refer" not in {row["least_cost"] for row in csv.DictReader(file)}
    assert facts["costs"]["sentence"] in done.stdout


@pytest.mark.slow
def test_a_matrix_that_lacks_a_class_is_refused_before_the_first_epoch(photos: Path, tmp_path: Path) -> None:
    (tmp_path / "costs.csv").write_text(",blue\nblue,0\n")
    done = command("--data", photos, "--out", tmp_path / "runs", "--model", "mlp", "--costs", tmp_path / "costs.csv")
    assert done.returncode == 2
    assert "no column of class Red rash, green leaf; there are blue" in done.stderr
    assert "epoch" not in done.stdout
