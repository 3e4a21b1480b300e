"""The probes and a model that fails: a real file whose output is bad for certain images."""

import base64
import json
from collections.abc import Callable
from pathlib import Path

import httpx
import numpy as np
import pytest

from serving.inference.predictor import FAILURES
from tests.support.forged_models import failing, rewritten
from tests.support.replies import error, metric
from tests.support.server import serving


@pytest.mark.slow
def test_callers_and_probes_see_a_model_that_fails(run: Path, tmp_path: Path, png: Callable[..., bytes]) -> None:
    black, gray, white = (png(np.full((40, 40, 3), value, np.uint8)) for value in (0, 100, 255))
    model = rewritten(run / "model.onnx", tmp_path / "model.onnx", failing)
    with serving(model, BENTOML_HOME=str(tmp_path / "home")) as address:

        def answer(image: bytes) -> tuple[int, str | None]:
            reply = httpx.post(f"{address}/predict", files={"image": image})
            assert "Gather" not in reply.text
            return reply.status_code, None if reply.status_code == 200 else error(reply)

        def probes() -> list[int]:
            paths = ("/livez", "/readyz", "/v2/health/live", "/v2/health/ready")
            return [httpx.get(f"{address}{path}").status_code for path in paths]

        assert answer(gray) == (200, None)
        for _ in range(FAILURES + 1):  # an answer of the model, of which one image may be the reason
            assert answer(black) == (500, "model_output_invalid")
        assert probes() == [200] * 4
        for _ in range(FAILURES - 1):
            assert answer(white) == (500, "internal_error")
        assert probes() == [200] * 4
        assert answer(gray) == (200, None)  # in a row is what counts
        for _ in range(FAILURES):
            assert probes() == [200] * 4
            assert answer(white) == (500, "internal_error")
        assert probes() == [503] * 4
        assert error(httpx.get(f"{address}/livez")) == "model_lost"
        text = httpx.get(f"{address}/metrics").text
    assert metric(text, "twinlens_rejected_inputs_total", reason="model_output_invalid") == FAILURES + 1


def test_a_fault_inside_a_batch_is_logged_once_and_answers_only_where_no_image_has_another_result(
    run: Path, tmp_path: Path, png: Callable[..., bytes]
) -> None:
    black, gray, white = (png(np.full((40, 40, 3), value, np.uint8)) for value in (0, 100, 255))
    model = rewritten(run / "model.onnx", tmp_path / "model.onnx", failing)
    with serving(model, log=tmp_path / "log", BENTOML_HOME=str(tmp_path / "home")) as address:

        def batch(name: str, *images: bytes) -> httpx.Response:
            files = [("images", image) for image in images]
            return httpx.post(f"{address}/predict_batch", files=files, headers={"X-Request-ID": name})

        all_fail = batch("all-fail", white, white, white)
        mixed = batch("mixed", white, b"no image", white)
        sound = batch("sound", gray, black)
        body = {"instances": [{"b64": base64.b64encode(white).decode()}]}
        instances = httpx.post(f"{address}/predict_instances", json=body, headers={"X-Request-ID": "instances"})
        text = httpx.get(f"{address}/metrics").text
    for reply in (all_fail, instances):
        assert (reply.status_code, error(reply)) == (500, "internal_error")
    assert (mixed.status_code, sound.status_code) == (200, 200)
    codes = [result["error"]["code"] for result in mixed.json()["results"]]
    assert codes == ["internal_error", "unsupported_image_format", "internal_error"]
    assert [result.get("error", {}).get("code") for result in sound.json()["results"]] == [None, "model_output_invalid"]
    assert metric(text, "twinlens_requests_total", route="/predict_batch", status="500") == 1
    lines = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines() if '"exception"' in line]
    named = {"all-fail": "Gather", "mixed": "Gather", "sound": "InvalidOutput", "instances": "Gather"}
    assert [line["request_id"] for line in lines] == list(named), "one line a fault, not one an image"
    assert all(named[line["request_id"]] in line["exception"] for line in lines)
