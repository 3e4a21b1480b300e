import csv
import itertools
import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import yaml

from serving.api.routes import ROUTES
from serving.contract.model import open_model
from tests.support.forged_models import REFUSED, one_at_a_time, rewritten
from tests.support.paths import ROOT
from tests.support.pictures import COLOURS, picture
from tests.support.refused_requests import BAD_REQUESTS, JPEG
from tests.support.replies import error, metric
from tests.support.server import free_port, serving


def test_predict_takes_a_form_or_the_raw_body(server: str, png: Callable[..., bytes]) -> None:
    for label in COLOURS:
        data = png(picture(label))
        form = httpx.post(f"{server}/predict", files={"image": ("any name.xyz", data)})
        raw = httpx.post(f"{server}/predict", content=data, headers={"Content-Type": "application/octet-stream"})
        assert form.status_code == raw.status_code == 200
        answer = form.json()
        assert answer == raw.json()
        assert answer["label"] == label
        assert answer["confidence"] == answer["probabilities"][label] == max(answer["probabilities"].values())
        assert set(answer["probabilities"]) == set(COLOURS)
        assert sum(answer["probabilities"].values()) == pytest.approx(1, abs=1e-5)
        assert answer["model_version"] == httpx.get(f"{server}/model").json()["version"]


def test_top_k(server: str, png: Callable[..., bytes]) -> None:
    files = {"image": png(picture("blue"))}
    assert list(httpx.post(f"{server}/predict?top_k=1", files=files).json()["probabilities"]) == ["blue"]
    assert len(httpx.post(f"{server}/predict?top_k=99", files=files).json()["probabilities"]) == 3
    for value in ("0", "-1", "x", "1.5", "", "²"):
        reply = httpx.post(f"{server}/predict", params={"top_k": value}, files=files)
        assert (reply.status_code, error(reply)) == (400, "invalid_top_k")


def test_predict_batch_gives_a_result_or_an_error_for_each_in_order(server: str, png: Callable[..., bytes]) -> None:
    good = [("images", png(picture(label))) for label in COLOURS]
    reply = httpx.post(f"{server}/predict_batch", files=[good[0], ("images", b"no image"), *good[1:]])
    assert reply.status_code == 200
    results = reply.json()["results"]
    assert [result.get("label") for result in results] == ["Red rash", None, "blue", "green leaf"]
    assert results[1]["error"]["code"] == "unsupported_image_format"
    alone = httpx.post(f"{server}/predict", files={"image": good[0][1]}).json()
    for label, probability in alone["probabilities"].items():
        assert results[0]["probabilities"][label] == pytest.approx(probability, abs=2e-6)
    reply = httpx.post(f"{server}/predict_batch", files=[good[0]] * 9)
    assert (reply.status_code, error(reply)) == (400, "too_many_files")


@pytest.mark.parametrize(("request_", "status", "code"), BAD_REQUESTS.values(), ids=BAD_REQUESTS)
def test_a_bad_request_gets_its_code(
    server: str, png: Callable[..., bytes], request_: dict[str, Any], status: int, code: str
) -> None:
    good = {"image": png(picture("green leaf"))}
    before = httpx.post(f"{server}/predict", files=good)
    reply = httpx.post(f"{server}/predict", **request_)
    assert (reply.status_code, error(reply)) == (status, code)
    after = httpx.post(f"{server}/predict", files=good)
    assert after.status_code == 200
    assert after.json() == before.json()
    assert httpx.get(f"{server}/readyz").status_code == 200


def test_a_body_without_a_declared_length_is_counted(server: str) -> None:
    pieces = itertools.chain([JPEG], itertools.repeat(bytes(10_000), 30))
    reply = httpx.post(f"{server}/predict", content=pieces, headers={"Content-Type": "image/jpeg"})
    assert (reply.status_code, error(reply)) == (413, "payload_too_large")


def test_other_paths_and_methods_get_the_same_envelope(server: str) -> None:
    for path in ("/nope", "/predict/", "/PREDICT", "/static_content/x", "/..%2fpredict"):
        reply = httpx.get(f"{server}{path}")
        assert (reply.status_code, error(reply)) == (404, "not_found")
        assert "/docs.json" in reply.json()["error"]["message"]
    for method in ("GET", "PUT", "DELETE", "OPTIONS"):
        reply = httpx.request(method, f"{server}/predict")
        assert (reply.status_code, error(reply)) == (405, "method_not_allowed")
        assert reply.headers["allow"] == "POST"


def test_the_callers_request_id_comes_back(server: str) -> None:
    reply = httpx.post(f"{server}/predict", json={}, headers={"X-Request-ID": "abc-1"})
    assert reply.json()["error"]["request_id"] == reply.headers["x-request-id"] == "abc-1"
    reply = httpx.post(f"{server}/predict", json={}, headers={"X-Request-ID": "a b<script>"})
    assert "script" not in reply.text


def test_docs_name_the_routes_that_exist(server: str) -> None:
    docs = httpx.get(f"{server}/docs.json").json()
    assert docs == yaml.safe_load((ROOT / "serving" / "api" / "static" / "openapi.yaml").read_text())
    version = httpx.get(f"{server}/model").json()["version"]
    for path, operations in docs["paths"].items():
        for method in operations:
            reply = httpx.request(method, server + path.format(name="twinlens", version=version))
            known = reply.status_code not in (404, 405) or error(reply) == "no_training_images"
            assert known, (method, path)
            assert str(reply.status_code) in operations[method]["responses"]
    assert {route.path for route in ROUTES} - {"/", "/docs.json", "/schema.json"} == set(docs["paths"])


def test_model_is_the_card_without_its_images(server: str, run: Path) -> None:
    card = httpx.get(f"{server}/model").json()
    report = json.loads((run / "report" / "report.json").read_text())
    own = report["card"]["provenance"]
    assert own["config"]["data"]
    assert card == report["card"] | {"provenance": own | {"config": {}, "environment": {}}}, "paths may have names"
    assert card["goldens"] == []


def test_every_row_of_predictions_is_what_the_service_answers(server: str, run: Path, photos: Path) -> None:
    with (run / "predictions.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert rows
    for row in rows:
        answer = httpx.post(f"{server}/predict", files={"image": (photos / row["path"]).read_bytes()}).json()
        assert answer["label"] == row["predicted"]
        for label, probability in answer["probabilities"].items():
            assert probability == pytest.approx(float(row[label]), abs=1e-4)


def test_many_at_once_each_get_their_own_answer(server: str, png: Callable[..., bytes]) -> None:
    labels = list(COLOURS) * 40
    with httpx.Client() as client, ThreadPoolExecutor(16) as pool:
        replies = pool.map(lambda label: client.post(f"{server}/predict", files={"image": png(picture(label))}), labels)
        assert [reply.json()["label"] for reply in replies] == labels


@pytest.mark.slow
def test_metrics_count_what_happened_in_all_workers(run: Path, tmp_path: Path, png: Callable[..., bytes]) -> None:
    with serving(run / "model.onnx", BENTOML_HOME=str(tmp_path), TWINLENS_WORKERS="2") as address:
        for _ in range(40):  # a new connection each, so that both workers get some
            assert httpx.post(f"{address}/predict", files={"image": png(picture("blue"))}).status_code == 200
        httpx.post(f"{address}/predict", files={"image": b"no image"})
        texts = [httpx.get(f"{address}/metrics").text for _ in range(6)]
        writers = {path.stem.rsplit("_", 1)[1] for path in tmp_path.rglob("counter_*.db")}
    assert len(writers) == 2, "both workers wrote"
    assert not list(tmp_path.rglob("gauge_live*.db")), "gauges of workers that have ended are left"
    for text in texts:
        assert metric(text, "twinlens_predictions_total", label="blue") == 40
        assert metric(text, "twinlens_confidence_count") == 40
        assert metric(text, "twinlens_rejected_inputs_total", reason="unsupported_image_format") == 1
        assert {stage: metric(text, "twinlens_stage_seconds_count", stage=stage) for stage in ("decode", "queue")} == {
            "decode": 40,
            "queue": 40,
        }
        assert metric(text, "twinlens_stage_seconds_sum", stage="infer") > 0
        assert metric(text, "twinlens_batch_size_sum") == 40
        assert metric(text, "twinlens_requests_total", route="/predict", status="200") == 40
        card = json.loads((run / "report" / "report.json").read_text())["card"]
        assert metric(text, "twinlens_model_info", name="tiny", version=card["version"]) == 1


def test_without_a_setting_no_answer_abstains(server: str, png: Callable[..., bytes]) -> None:
    doubtful = png(np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8))
    assert httpx.post(f"{server}/predict", files={"image": doubtful}).json()["abstained"] is False
    [answer] = httpx.post(f"{server}/predict_batch", files={"images": doubtful}).json()["results"]
    assert answer["abstained"] is False
    assert metric(httpx.get(f"{server}/metrics").text, "twinlens_abstentions_total") == 0


def test_answers_below_the_setting_abstain_and_are_counted(run: Path, photos: Path, tmp_path: Path) -> None:
    """The setting is one image's confidence, of which the answer's six decimals are less: it is not below itself."""
    classifier = open_model(run / "model.onnx")
    with (run / "predictions.csv").open(newline="") as file:
        images = [(photos / row["path"]).read_bytes() for row in csv.DictReader(file)]
    confidences = [float(classifier.predict(classifier.card.preprocessing(data)[np.newaxis]).max()) for data in images]
    least = sorted(confidence for confidence in confidences if round(confidence, 6) < confidence)[1]
    expected = [confidence < least for confidence in confidences]
    assert 0 < sum(expected) < len(images)
    with serving(run / "model.onnx", BENTOML_HOME=str(tmp_path), TWINLENS_ABSTAIN_BELOW=repr(least)) as address:
        alone = [httpx.post(f"{address}/predict?top_k=1", files={"image": data}).json() for data in images]
        others = [index for index, confidence in enumerate(confidences) if confidence != least]
        batch = httpx.post(f"{address}/predict_batch", files=[("images", images[index]) for index in others])
        text = httpx.get(f"{address}/metrics").text
    assert [answer["abstained"] for answer in alone] == expected
    assert alone[confidences.index(least)]["confidence"] < least
    assert [answer["abstained"] for answer in batch.json()["results"]] == [expected[index] for index in others]
    assert metric(text, "twinlens_abstentions_total") == 2 * sum(expected)
    assert metric(text, "twinlens_predictions_total") == len(images) + len(others)


def test_a_threshold_of_the_report_hands_over_what_the_report_says(run: Path, photos: Path, tmp_path: Path) -> None:
    point = json.loads((run / "report" / "report.json").read_text())["risk_coverage"]["referrals"][-1]
    assert (point["at_most"], point["handed_over"], point["kept"]) == (0.5, 6, 6)
    with (run / "predictions.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    files = [("images", (photos / row["path"]).read_bytes()) for row in rows]
    below = str(point["threshold"])
    with serving(run / "model.onnx", BENTOML_HOME=str(tmp_path), TWINLENS_ABSTAIN_BELOW=below) as address:
        results = httpx.post(f"{address}/predict_batch", files=files).json()["results"]
    right = [
        answer["label"] == row["true"] for answer, row in zip(results, rows, strict=True) if not answer["abstained"]
    ]
    assert len(right) == point["kept"]
    assert sum(right) == point["kept"] * point["accuracy"]


def start(
    model: Path, tmp_path: Path, *, port: int | None = None, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Start a service that is expected to end by itself."""
    variables = os.environ | {"TWINLENS_MODEL": str(model), "BENTOML_HOME": str(tmp_path / "home")} | environment
    command = [sys.executable, "-m", "bentoml", "serve", "--host", "127.0.0.1", "--port", str(port or free_port())]
    return subprocess.run(command, cwd=ROOT, env=variables, capture_output=True, text=True, timeout=60, check=False)


def test_no_model_and_no_reload_names_the_path_and_the_command(tmp_path: Path) -> None:
    done = start(tmp_path / "none.onnx", tmp_path, TWINLENS_RELOAD_S="0")
    assert done.returncode != 0
    assert str(tmp_path / "none.onnx") in done.stderr
    assert "python -m training" in done.stderr


def test_a_refused_model_ends_the_start_with_the_reason(run: Path, tmp_path: Path) -> None:
    for name in ("no card", "unknown version", "another class", "other pixels"):
        change, reason = REFUSED[name]
        done = start(rewritten(run / "model.onnx", tmp_path / "model.onnx", change), tmp_path)
        assert done.returncode != 0
        assert "not ready" in done.stderr
        assert reason.replace("\\", "") in done.stderr, done.stderr


def test_a_model_whose_largest_batch_cannot_run_ends_the_start(run: Path, tmp_path: Path) -> None:
    model = rewritten(run / "model.onnx", tmp_path / "model.onnx", one_at_a_time)
    done = start(model, tmp_path, TWINLENS_MAX_BATCH="7")
    assert done.returncode != 0
    assert f"not ready: {model}: a batch of 7 images cannot run" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_required_gpu_that_is_absent_ends_the_start(run: Path, tmp_path: Path) -> None:
    if shutil.which("nvidia-smi"):
        pytest.skip("there is a GPU")
    done = start(run / "model.onnx", tmp_path, TWINLENS_REQUIRE_GPU="1")
    assert done.returncode != 0
    assert "a GPU is required" in done.stderr


def test_a_setting_that_does_not_parse_ends_the_start(run: Path, tmp_path: Path) -> None:
    done = start(run / "model.onnx", tmp_path, TWINLENS_MAX_BATCH="many")
    assert done.returncode != 0
    assert "TWINLENS_MAX_BATCH='many'" in done.stdout + done.stderr


def test_a_port_in_use_ends_the_start_and_is_named(run: Path, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = start(run / "model.onnx", tmp_path, port=port)
    assert done.returncode != 0
    assert f"Could not bind 127.0.0.1:{port}" in done.stdout + done.stderr
