"""Unfamiliar images: what the trainer evaluated is what every way of asking answers."""

import base64
import csv
import json
from pathlib import Path
from typing import Any

import cv2
import httpx
import numpy as np
import onnx
import pytest
from onnx.utils import Extractor
from pyarrow import parquet

from serving.batch.__main__ import main
from serving.contract.card.model_card import METADATA_KEY
from serving.contract.model import open_model
from tests.support.bars import OPTIONS
from tests.support.replies import metric
from tests.support.server import serving
from training.evaluate import EvaluateConfig, evaluate
from training.options.config import TrainConfig
from training.train import train

pytestmark = pytest.mark.slow  # a training, a service and its tables


@pytest.fixture(scope="module")
def strange() -> list[bytes]:
    """Pictures of noise at full strength."""
    rng = np.random.default_rng(1)
    return [cv2.imencode(".png", rng.integers(0, 256, (16, 16, 3), dtype=np.uint8))[1].tobytes() for _ in range(20)]


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def paths_of_test(run: Path) -> list[str]:
    return [row["path"] for row in rows(run / "predictions.csv")]


def asked_by_protocol(address: str, files: list[bytes]) -> dict[str, list[Any]]:
    """The outputs of /v2 for some files, which must have the datatypes and shapes that its metadata say."""
    url, data = f"{address}/v2/models/twinlens", [base64.b64encode(file).decode() for file in files]
    body = {"inputs": [{"name": "files", "datatype": "BYTES", "shape": [len(files)], "data": data}]}
    outputs = httpx.post(f"{url}/infer", json=body).json()["outputs"]
    for said, output in zip(httpx.get(url).json()["outputs"], outputs, strict=True):
        assert said == {name: output[name] for name in ("name", "datatype")} | {"shape": [-1, *output["shape"][1:]]}
    return {output["name"]: output["data"] for output in outputs}


def test_every_route_answers_what_was_evaluated(
    aware: Path, pictures: Path, strange: list[bytes], tmp_path: Path
) -> None:
    report = json.loads((aware / "report" / "report.json").read_text())
    files = [(pictures / path).read_bytes() for path in paths_of_test(aware)]
    with serving(aware / "model.onnx", BENTOML_HOME=str(tmp_path)) as address:
        zero = httpx.get(f"{address}/metrics").text
        alone = [httpx.post(f"{address}/predict", files={"image": data}).json() for data in files]
        odd = httpx.post(f"{address}/predict_batch", files=[("images", data) for data in strange]).json()["results"]
        instances = [{"b64": base64.b64encode(data).decode()} for data in files[:8]]
        vertex = httpx.post(f"{address}/predict_instances", json={"instances": instances}).json()["predictions"]
        protocol = asked_by_protocol(address, files[:8])
        card, text = httpx.get(f"{address}/model").json(), httpx.get(f"{address}/metrics").text
    limit = card["familiarity"]["threshold"]
    assert all(answer["unfamiliar"] is (answer["novelty"] > limit) for answer in [*alone, *odd])
    assert all((answer["prediction_set"] == []) is answer["unfamiliar"] for answer in [*alone, *odd, *vertex])
    with (aware / "predictions.csv").open(newline="") as file:
        true = [row["true"] for row in csv.DictReader(file)]
    held = [label in answer["prediction_set"] for label, answer in zip(true, alone, strict=True)]
    sets, known = report["calibration"]["prediction_sets"], [not answer["unfamiliar"] for answer in alone]
    assert sets["coverage"] == pytest.approx(np.mean(held))
    assert sets["familiar"]["coverage"] == pytest.approx(np.mean(np.array(held)[known]))
    assert (sets["images"], sets["familiar"]["images"]) == (len(held), sum(known))
    count = sum(answer["unfamiliar"] for answer in alone)
    assert count / len(files) == report["unknown"]["measured"]["value"] < 0.2
    assert sum(answer["unfamiliar"] for answer in odd) >= 18
    assert [answer["novelty"] for answer in vertex] == pytest.approx([each["novelty"] for each in alone[:8]], rel=1e-4)
    assert protocol["unfamiliar"] == [answer["unfamiliar"] for answer in alone[:8]]
    assert protocol["novelty"] == pytest.approx([each["novelty"] for each in alone[:8]], rel=1e-4)
    recorded = rows(aware / "predictions.csv")
    assert [row["unfamiliar"] == "true" for row in recorded] == [answer["unfamiliar"] for answer in alone]
    assert [float(row["novelty"]) for row in recorded] == pytest.approx([one["novelty"] for one in alone], rel=1e-4)
    assert metric(zero, "twinlens_unfamiliar_total") == 0
    seen = sum(answer["unfamiliar"] for answer in [*alone, *odd, *vertex, *alone[:8]])
    assert metric(text, "twinlens_unfamiliar_total") == seen
    assert (card["familiarity"]["false_alarms"], card["familiarity"]["images"]) == (0.05, 108)


def test_reports_say_how_many_test_images_are_unfamiliar(aware: Path, pictures: Path, tmp_path: Path) -> None:
    report = json.loads((aware / "report" / "report.json").read_text())
    unknown, parity = report["unknown"], report["parity"]["novelty"]
    assert parity["decisions_differ"] == 0
    assert parity["largest_difference"] < parity["tolerance"]
    assert [found["name"] for found in unknown["unlike"]] == ["noise", "one colour"]
    assert unknown["unlike"][0]["roc_auc"] > 0.95
    assert unknown["measured"]["interval"][0] <= unknown["measured"]["value"] <= unknown["measured"]["interval"][1]
    page = (aware / "report" / "report.html").read_text()
    assert f"it is unfamiliar above {unknown['threshold']}" in page
    again = evaluate(EvaluateConfig(run=aware, data=pictures, out=tmp_path / "again"))
    assert json.loads((again / "evaluation.json").read_text())["unknown"] == unknown | {"unlike": []}


def test_offline_tables_have_both_columns(aware: Path, pictures: Path, strange: list[bytes], tmp_path: Path) -> None:
    folder = tmp_path / "mixed"
    folder.mkdir()
    for number, data in enumerate(strange):
        (folder / f"strange {number}.png").write_bytes(data)
    for number, path in enumerate(paths_of_test(aware)):
        (folder / f"familiar {number}.png").write_bytes((pictures / path).read_bytes())
    (folder / "broken.png").write_bytes(b"no image")
    for name in ("out.csv", "out.parquet"):
        options = ["--model", str(aware / "model.onnx"), "--out", str(tmp_path / name), "--workers", "1"]
        assert main([str(folder), *options]) == 3, "one image is broken"
    with (tmp_path / "out.csv").open(newline="") as file:
        table = {row["path"]: row for row in csv.DictReader(file)}
    typed = {row["path"]: row for row in parquet.read_table(tmp_path / "out.parquet").to_pylist()}
    classifier = open_model(aware / "model.onnx")
    assert classifier.card.familiarity is not None
    for path, row in table.items():
        if path == "broken.png":
            assert (row["unfamiliar"], row["novelty"], typed[path]["novelty"]) == ("", "", None)
            continue
        pixels = classifier.card.preprocessing((folder / path).read_bytes())
        [answer] = classifier.rows(pixels[np.newaxis])
        assert answer.novelty is not None
        assert float(row["novelty"]) == pytest.approx(answer.novelty, rel=1e-4)
        assert (row["unfamiliar"] == "true") is (answer.novelty > classifier.card.familiarity.threshold)
        assert typed[path]["unfamiliar"] is (row["unfamiliar"] == "true") is (row["prediction_set"] == "[]")
        assert (typed[path]["prediction_set"] == []) is typed[path]["unfamiliar"]
    assert sum(row["unfamiliar"] == "true" for path, row in table.items() if path.startswith("strange")) >= 18


def test_files_without_novelty_are_served(aware: Path, tmp_path: Path, strange: list[bytes]) -> None:
    """Those of older versions, whose cards have no such entries."""
    file = onnx.load(aware / "model.onnx")
    card = json.loads({entry.key: entry.value for entry in file.metadata_props}[METADATA_KEY])
    del card["familiarity"], card["neighbours"]
    old = Extractor(file).extract_model(["images"], ["probabilities"])
    onnx.helper.set_model_props(old, {METADATA_KEY: json.dumps(card)})
    onnx.save(old, tmp_path / "old.onnx")
    image = {"image": strange[0]}
    with serving(tmp_path / "old.onnx", BENTOML_HOME=str(tmp_path)) as address:
        answer = httpx.post(f"{address}/predict", files=image).json()
    assert answer["label"]
    assert {"unfamiliar", "novelty"}.isdisjoint(answer)


def test_the_eight_bit_file_has_a_limit_of_its_own(aware: Path, pictures: Path, strange: list[bytes]) -> None:
    if not (aware / "model.int8.onnx").exists():
        pytest.skip("its labels agree too little")
    files = [open_model(aware / name) for name in ("model.onnx", "model.int8.onnx")]
    made = files[0].card.preprocessing
    usual = np.stack([made((pictures / path).read_bytes()) for path in paths_of_test(aware)])
    odd = np.stack([made(data) for data in strange])
    for file in files:
        familiarity = file.card.familiarity
        assert familiarity is not None
        assert (familiarity.false_alarms, familiarity.images) == (0.05, 108)
        novelty = [file.answers(images).novelty for images in (usual, odd)]
        assert novelty[0] is not None
        assert novelty[1] is not None
        assert familiarity.unfamiliar(novelty[0]).mean() < 0.2
        assert familiarity.unfamiliar(novelty[1]).sum() >= 18
    own: list[Any] = [file.answers(usual).novelty for file in files]
    assert 0 < np.abs(own[0] - own[1]).max() < 0.5, "made of other embeddings"
    assert files[1].card.neighbours is None


@pytest.mark.long
def test_it_can_be_switched_off_and_few_images_switch_it_off_with_a_warning(pictures: Path, tmp_path: Path) -> None:
    off = train(TrainConfig(data=pictures, out=tmp_path, name="off", unfamiliar=0, **OPTIONS | {"epochs": 1}))
    few = train(TrainConfig(data=pictures, out=tmp_path, name="few", unfamiliar=0.01, **OPTIONS | {"epochs": 1}))
    for run, warned in ((off, False), (few, True)):
        assert open_model(run / "model.onnx").card.familiarity is None
        assert [output.name for output in onnx.load(run / "model.onnx").graph.output] == ["probabilities", "embedding"]
        report = json.loads((run / "report" / "report.json").read_text())
        assert report["unknown"] is None
        text = "54 validation images are too few for `--unfamiliar 0.01`, which needs 230"
        assert any(text in warning for warning in report["warnings"]) is warned
