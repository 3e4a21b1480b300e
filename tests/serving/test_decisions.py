"""Decisions by operating points: what the trainer evaluated is what every way of asking answers."""

import base64
import csv
import json
from pathlib import Path
from typing import Any

import cv2
import httpx
import numpy as np
import pytest
from pyarrow import parquet

from serving.batch.__main__ import main
from serving.contract.model import open_model
from tests.support.replies import metric
from tests.support.server import serving
from tests.support.trainer import command
from training.evaluate import EvaluateConfig, evaluate
from training.options.config import TrainConfig
from training.train import train

pytestmark = pytest.mark.slow  # a training, a service and its tables

OPERATE = ("dark:sensitivity=0.9", "bright:specificity=0.8")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """360 pictures of noise in three classes that differ a little in brightness, so that no model is sure."""
    root = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    for number in range(360):
        label = ("bright", "dark", "medium")[number % 3]
        level = {"dark": 100, "medium": 125, "bright": 150}[label] + rng.normal(0, 20)
        pixels = np.clip(rng.normal(level, 40, (16, 16, 3)), 0, 255).astype(np.uint8)
        (root / label).mkdir(exist_ok=True)
        assert cv2.imwrite(str(root / label / f"{number}.png"), pixels)
    return root


@pytest.fixture(scope="module")
def decisive(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on them with two operating points."""
    options: dict[str, Any] = {"model": "mlp", "hidden": (16,), "image_size": 16, "epochs": 4, "augment": "none"}
    return train(
        TrainConfig(
            data=pictures,
            out=tmp_path_factory.mktemp("runs"),
            name="decisive",
            operate=OPERATE,
            sets="class",
            quantize="int8",
            val_fraction=0.3,
            test_fraction=0.3,
            **options,
        )
    )


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def decided(row: dict[str, str]) -> dict[str, bool]:
    return {name: row[f"decision_{name}"] == "true" for name in ("dark", "bright")}


def asked_by_protocol(address: str, files: list[bytes]) -> list[list[bool]]:
    """The output `decisions` of /v2, which must be the same in JSON, where it comes unasked, and as bytes."""
    url, count = f"{address}/v2/models/twinlens", len(files)
    outputs = httpx.get(url).json()["outputs"]
    assert {"name": "decisions", "datatype": "BOOL", "shape": [-1, 2]} in outputs
    data = [base64.b64encode(file).decode() for file in files]
    body: dict[str, Any] = {"inputs": [{"name": "files", "datatype": "BYTES", "shape": [count], "data": data}]}
    reply = httpx.post(f"{url}/infer", json=body).json()
    [tensor] = [output for output in reply["outputs"] if output["name"] == "decisions"]
    assert (tensor["datatype"], tensor["shape"]) == ("BOOL", [count, 2])
    body["outputs"] = [{"name": "decisions", "parameters": {"binary_data": True}}]
    raw = httpx.post(f"{url}/infer", json=body)
    as_bytes = raw.content[int(raw.headers["Inference-Header-Content-Length"]) :]
    assert [bool(byte) for byte in as_bytes] == tensor["data"]
    return [tensor["data"][2 * row : 2 * row + 2] for row in range(count)]


def test_every_route_decides_what_was_evaluated(decisive: Path, pictures: Path, tmp_path: Path) -> None:
    recorded = rows(decisive / "predictions.csv")
    expected = [decided(row) for row in recorded]
    for name in ("dark", "bright"):
        assert 10 < sum(each[name] for each in expected) < len(expected) - 10
    assert any(each["dark"] and row["predicted"] != "dark" for each, row in zip(expected, recorded, strict=True))
    files = [(pictures / row["path"]).read_bytes() for row in recorded]
    with serving(decisive / "model.onnx", BENTOML_HOME=str(tmp_path)) as address:
        zero = httpx.get(f"{address}/metrics").text
        alone = [httpx.post(f"{address}/predict?top_k=1", files={"image": data}).json() for data in files]
        batch = httpx.post(f"{address}/predict_batch", files=[("images", data) for data in files[:32]]).json()
        instances = [{"b64": base64.b64encode(data).decode()} for data in files[:8]]
        vertex = httpx.post(f"{address}/predict_instances", json={"instances": instances}).json()
        protocol = asked_by_protocol(address, files[:8])
        card, text = httpx.get(f"{address}/model").json(), httpx.get(f"{address}/metrics").text
    assert [answer["decisions"] for answer in alone] == expected
    assert [answer["decisions"] for answer in batch["results"]] == expected[:32]
    assert [answer["decisions"] for answer in vertex["predictions"]] == expected[:8]
    assert protocol == [[each["dark"], each["bright"]] for each in expected[:8]]
    thresholds = card["calibration"]["class_thresholds"]
    assert len(thresholds) == 3
    assert None not in thresholds
    for answer, row in zip(alone, recorded, strict=True):
        held = {
            name for name, least in zip(card["classes"], thresholds, strict=True) if float(row[name]) >= least - 1e-6
        }
        assert set(answer["prediction_set"]) == (set() if answer["unfamiliar"] else held | {answer["label"]})
    assert metric(zero, "twinlens_decisions_total") == 0
    assert zero.count("twinlens_decisions_total{") == 4, "each decision is exported before it is made"
    yes = sum(each["dark"] for each in [*expected, *expected[:32], *expected[:8], *expected[:8], *expected[:8]])
    assert metric(text, "twinlens_decisions_total", label="dark", decision="yes") == yes
    assert metric(text, "twinlens_decisions_total", label="dark") == len(files) + 32 + 3 * 8
    assert [f"{point['label']}:{point['score']}={point['target']}" for point in card["operating_points"]] == [*OPERATE]


def test_the_report_counts_the_decisions_of_predictions_csv(decisive: Path, pictures: Path, tmp_path: Path) -> None:
    recorded = rows(decisive / "predictions.csv")
    report = json.loads((decisive / "report" / "report.json").read_text())
    for found in report["decisions"]["points"]:
        label = found["point"]["label"]
        yes = np.array([decided(row)[label] for row in recorded])
        of_class = np.array([row["true"] == label for row in recorded])
        probabilities = np.array([float(row[label]) for row in recorded])
        assert np.array_equal(yes, probabilities >= found["point"]["threshold"])
        assert found["rates"]["sensitivity"]["value"] == yes[of_class].mean()
        assert found["rates"]["specificity"]["value"] == (~yes[~of_class]).mean()
        score = found["point"]["score"]
        assert found["validation"][score]["value"] >= found["point"]["target"]
    assert [curves["name"] for curves in report["decisions"]["curves"]["classes"]] == ["bright", "dark", "medium"]
    page = (decisive / "report" / "report.html").read_text()
    assert "dark: yes where its probability is at least" in page
    assert page.count("<details>") == 4
    again = evaluate(EvaluateConfig(run=decisive, data=pictures, out=tmp_path / "again"))
    assert (again / "predictions.csv").read_bytes() == (decisive / "predictions.csv").read_bytes()
    others = json.loads((again / "evaluation.json").read_text())["decisions"]
    assert others["points"][0]["rates"] == report["decisions"]["points"][0]["rates"]
    assert others["curves"] == report["decisions"]["curves"]


def test_offline_tables_have_the_decisions(decisive: Path, pictures: Path, tmp_path: Path) -> None:
    expected = {row["path"]: decided(row) for row in rows(decisive / "predictions.csv")}
    (pictures / "dark" / "broken.png").write_bytes(b"no image")
    try:
        for name in ("out.csv", "out.parquet"):
            options = ["--model", str(decisive / "model.onnx"), "--out", str(tmp_path / name), "--workers", "1"]
            assert main([str(pictures), *options]) == 3, "one image is broken"
    finally:
        (pictures / "dark" / "broken.png").unlink()
    table = {row["path"]: row for row in rows(tmp_path / "out.csv")}
    assert {path: decided(table[path]) for path in expected} == expected
    assert (table["dark/broken.png"]["decision_dark"], table["dark/broken.png"]["p_dark"]) == ("", "")
    typed = {row["path"]: row for row in parquet.read_table(tmp_path / "out.parquet").to_pylist()}
    assert {
        path: {name: typed[path][f"decision_{name}"] for name in ("dark", "bright")} for path in expected
    } == expected
    assert typed["dark/broken.png"]["decision_dark"] is None


def test_the_eight_bit_file_has_thresholds_of_its_own(decisive: Path) -> None:
    report = json.loads((decisive / "report" / "report.json").read_text())
    if not report["quantized"]["published"]:
        pytest.skip("its labels agree too little")
    points = [open_model(decisive / name).card.operating_points for name in ("model.onnx", "model.int8.onnx")]
    assert [point.label for point in points[1]] == [point.label for point in points[0]]
    assert [point.threshold for point in points[1]] == pytest.approx([point.threshold for point in points[0]], abs=0.05)


@pytest.mark.long
def test_a_demand_that_cannot_be_met_is_refused_before_the_first_epoch(pictures: Path, tmp_path: Path) -> None:
    begin = ["--data", pictures, "--out", tmp_path, "--model", "mlp", "--name", "x", "--operate"]
    for demand, reason in {
        "dark=0.9": "expected CLASS:SCORE=VALUE",
        "grey:sensitivity=0.9": "there is no class 'grey'; there are bright, dark, medium",
    }.items():
        done = command(*begin, demand)
        assert done.returncode == 2
        assert reason in done.stderr
        assert "epoch" not in done.stdout
        assert not (tmp_path / "x" / "config.yaml").exists()


def test_few_validation_images_and_demands_that_nothing_reaches_are_warnings(pictures: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"model": "mlp", "hidden": (8,), "image_size": 8, "epochs": 1, "lr": 1e-6}
    demands = ("dark:sensitivity=0.9", "medium:precision=0.99")
    run = train(TrainConfig(data=pictures, out=tmp_path, name="x", operate=demands, promote="never", **options))
    said = json.loads((run / "report" / "report.json").read_text())["warnings"]
    assert any(line.startswith("The threshold of dark was chosen on 18 validation images") for line in said)
    assert any("No threshold reaches `--operate medium:precision=0.99`" in line for line in said)
    assert [point.label for point in open_model(run / "model.onnx").card.operating_points] == ["dark"]
