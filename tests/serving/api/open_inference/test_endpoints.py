import base64
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from serving.api.errors import RequestError
from serving.api.open_inference.request import MAX_JSON, parse_request
from serving.contract.model import open_model
from tests.support.pictures import COLOURS, picture
from tests.support.server import serving

MODEL = "/v2/models/twinlens"


@pytest.fixture(scope="module")
def pixels(run: Path) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (5, 24, 24, 3), dtype=np.uint8)


@pytest.mark.parametrize("binary", [True, False])
def test_tritons_client(server: str, run: Path, pixels: np.ndarray, png: Callable[..., bytes], binary: bool) -> None:
    from tritonclient import http

    classifier = open_model(run / "model.onnx")
    client = http.InferenceServerClient(server.removeprefix("http://"))
    try:
        assert client.is_server_live()
        assert client.is_server_ready()
        assert client.is_model_ready("twinlens")
        assert client.is_model_ready("twinlens", classifier.card.version)
        assert client.get_server_metadata()["extensions"] == ["binary_tensor_data"]
        metadata = client.get_model_metadata("twinlens")
        assert metadata["inputs"][0] == {"name": "images", "datatype": "UINT8", "shape": [-1, 24, 24, 3]}
        assert metadata["versions"] == [classifier.card.version]

        images = http.InferInput("images", list(pixels.shape), "UINT8")
        images.set_data_from_numpy(pixels, binary_data=binary)
        outputs = [http.InferRequestedOutput(name, binary_data=binary) for name in ("probabilities", "labels")]
        expected = classifier.predict(pixels)
        for wanted in (outputs, None):
            result = client.infer("twinlens", [images], outputs=wanted, request_id="abc")
            probabilities = result.as_numpy("probabilities")
            assert (probabilities.dtype, probabilities.shape) == (np.float32, expected.shape)
            assert probabilities.tobytes() == expected.tobytes(), "equal to the last bit"
            labels = [name.decode() if isinstance(name, bytes) else name for name in result.as_numpy("labels")]
            assert labels == [classifier.card.classes[label] for label in expected.argmax(1)]
            assert result.get_response()["id"] == "abc"
            assert result.get_response()["model_version"] == classifier.card.version

        encoded = np.array([png(picture(label)) for label in COLOURS], np.object_)
        files = http.InferInput("files", [3], "BYTES")
        files.set_data_from_numpy(encoded)
        result = client.infer("twinlens", [files], outputs=outputs[1:])
        assert [getattr(name, "decode", lambda: name)() for name in result.as_numpy("labels")] == list(COLOURS)  # noqa: B023

        with pytest.raises(http.InferenceServerException, match="no such model or version"):
            client.infer("other", [images])
    finally:
        client.close()


def test_plain_json(server: str, png: Callable[..., bytes], pixels: np.ndarray) -> None:
    text = base64.b64encode(png(picture("blue"))).decode()
    tensor = {"name": "files", "datatype": "BYTES", "shape": [1], "data": [text]}
    answer = httpx.post(f"{server}{MODEL}/infer", json={"inputs": [tensor]}).json()
    outputs = {output["name"]: output for output in answer["outputs"]}
    assert outputs["labels"]["data"] == ["blue"]
    assert outputs["probabilities"]["shape"] == [1, 3]
    nested = {"name": "images", "datatype": "UINT8", "shape": [1, 24, 24, 3], "data": pixels[:1].tolist()}
    flat = nested | {"data": pixels[:1].ravel().tolist()}
    replies = [httpx.post(f"{server}{MODEL}/infer", json={"inputs": [tensor]}) for tensor in (nested, flat)]
    assert replies[0].status_code == 200
    assert replies[0].json() == replies[1].json()


GOOD = {"name": "images", "datatype": "UINT8", "shape": [1, 24, 24, 3], "data": [0] * 1728}
FILES = {"name": "files", "datatype": "BYTES", "shape": [1], "data": ["aGVsbG8="]}
BAD: dict[str, tuple[object, int, str]] = {
    "no JSON": (b"{", 400, "not an inference request"),
    "a list": ([], 400, "not an inference request"),
    "deep": (b"[" * 100_000, 400, "not an inference request"),
    "no input": ({"inputs": []}, 400, "with one input"),
    "two inputs": ({"inputs": [GOOD, FILES]}, 400, "with one input"),
    "another name": ({"inputs": [GOOD | {"name": "x"}]}, 400, "expected 'images'"),
    "floats": ({"inputs": [GOOD | {"datatype": "FP32"}]}, 400, "expected 'images'"),
    "another size": ({"inputs": [GOOD | {"shape": [1, 23, 24, 3]}]}, 400, "expected images of [24, 24, 3]"),
    "too few values": ({"inputs": [GOOD | {"data": [0]}]}, 400, "1,728 whole numbers"),
    "a value too large": ({"inputs": [GOOD | {"data": [256] * 1728}]}, 400, "from 0 to 255"),
    "a huge value": ({"inputs": [GOOD | {"data": [2**70] * 1728}]}, 400, "from 0 to 255"),
    "a long text among values": ({"inputs": [GOOD | {"data": ["a" * 20_000, *[""] * 99_999]}]}, 400, "from 0 to 255"),
    "lists of several lengths": ({"inputs": [GOOD | {"data": [[0], [0, 0]]}]}, 400, "from 0 to 255"),
    "fractions": ({"inputs": [GOOD | {"data": [0.5] * 1728}]}, 400, "from 0 to 255"),
    "truth values": ({"inputs": [GOOD | {"data": [True] * 1728}]}, 400, "from 0 to 255"),
    "no image": ({"inputs": [GOOD | {"shape": [0, 24, 24, 3], "data": []}]}, 400, "expected 1 to 8 images"),
    "too many images": ({"inputs": [GOOD | {"shape": [9, 24, 24, 3]}]}, 400, "expected 1 to 8 images"),
    "a negative shape": ({"inputs": [GOOD | {"shape": [-1, 24, 24, 3]}]}, 400, "expected 1 to 8 images"),
    "an id that is no text": ({"inputs": [GOOD], "id": 5}, 400, "not an inference request"),
    "files in a square": ({"inputs": [FILES | {"shape": [1, 2]}]}, 400, "got 'files' (BYTES, [1, 2])"),
    "a shape in words": ({"inputs": [GOOD | {"shape": "1"}]}, 400, "not an inference request"),
    "no base64": ({"inputs": [FILES | {"data": ["?"]}]}, 400, "base64"),
    "no image file": ({"inputs": [FILES]}, 415, "not an image of an accepted format"),
    "another output": ({"inputs": [GOOD], "outputs": [{"name": "x"}]}, 400, "no output 'x'"),
    "more bytes than there are": (
        {"inputs": [{**GOOD, "data": None, "parameters": {"binary_data_size": 1728}}]},
        400,
        "0 follow the JSON",
    ),
    "too much JSON": (b" " * 1_000_000, 413, "larger than"),
}


@pytest.mark.parametrize(("body", "status", "reason"), BAD.values(), ids=BAD)
def test_bad_requests_are_refused_in_the_protocols_shape(server: str, body: object, status: int, reason: str) -> None:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    reply = httpx.post(f"{server}{MODEL}/infer", content=content)
    assert (reply.status_code, set(reply.json())) == (status, {"error"}), reply.text
    assert reason in reply.json()["error"]
    assert httpx.get(f"{server}/v2/health/ready").status_code == 200


LONG = {
    "a shape of huge sides": b'{"inputs":[{"name":"files","datatype":"BYTES","shape":[1,%s]}]}'
    % b",".join([b"9" * 4000] * 250),
    "a shape of many sides": b'{"inputs":[{"name":"files","datatype":"BYTES","shape":[1,%s]}]}'
    % b",".join([b"9" * 18] * 50_000),
    "a shape of faults": b'{"inputs":[{"name":"files","datatype":"BYTES","shape":[%s]}]}'
    % b",".join([b"{}"] * 300_000),
    "inputs without members": b'{"inputs":[%s]}' % b",".join([b"{}"] * 300_000),
    "outputs without members": b'{"inputs":[],"outputs":[%s]}' % b",".join([b"{}"] * 300_000),
    "one output many times": b'{"inputs":[],"outputs":[%s]}' % b",".join([b'{"name":"labels"}'] * 50_000),
    "a long name": b'{"inputs":[{"name":"%s","datatype":"BYTES","shape":[1]}]}' % (b"a" * 1_000_000),
    "a long datatype": b'{"inputs":[{"name":"files","datatype":"%s","shape":[1]}]}' % (b"a" * 1_000_000),
}


@pytest.mark.parametrize("body", LONG.values(), ids=LONG)
def test_no_json_blocks_the_event_loop_or_comes_back(run: Path, body: bytes) -> None:
    assert len(body) <= MAX_JSON
    card = open_model(run / "model.onnx").card
    before = time.thread_time()
    with pytest.raises(RequestError) as refusal:
        parse_request(body, None, card, 8)
    assert time.thread_time() - before < 0.3
    assert len(str(refusal.value)) < 300


@pytest.mark.parametrize("length", ["-1", "x", "9999999", "²"])
def test_a_header_length_that_cannot_be_is_refused(server: str, length: str) -> None:
    headers = {b"Inference-Header-Content-Length": length.encode()}
    reply = httpx.post(f"{server}{MODEL}/infer", content=b"{}", headers=headers)
    assert reply.status_code == 400
    assert isinstance(reply.json()["error"], str)


def test_other_paths_have_the_protocols_shape(server: str) -> None:
    for path in ("/v2/nope", "/v2/models/other", f"{MODEL}/versions/0", "/v2/models/other/ready"):
        reply = httpx.get(f"{server}{path}")
        assert reply.status_code == 404
        assert isinstance(reply.json()["error"], str)


def test_a_wrong_method_gets_the_allowed_ones(server: str) -> None:
    for path, method, allowed in (
        (f"{MODEL}/infer", "GET", "POST"),
        (f"{MODEL}/versions/0/infer", "DELETE", "POST"),
        (MODEL, "POST", "GET, HEAD"),
    ):
        reply = httpx.request(method, f"{server}{path}")
        assert (reply.status_code, reply.headers["allow"]) == (405, allowed)
        assert isinstance(reply.json()["error"], str)


@pytest.mark.slow
def test_probes_need_no_token(run: Path, tmp_path: Path) -> None:
    (tmp_path / "tokens").write_text("a-token")
    environment: dict[str, Any] = {
        "BENTOML_HOME": str(tmp_path / "home"),
        "TWINLENS_TOKEN_FILE": str(tmp_path / "tokens"),
    }
    with serving(run / "model.onnx", **environment) as address:
        for path in ("/v2/health/live", "/v2/health/ready", f"{MODEL}/ready"):
            assert httpx.get(f"{address}{path}").status_code == 200
        for method, path in (("GET", "/v2"), ("GET", MODEL), ("POST", f"{MODEL}/infer")):
            reply = httpx.request(method, f"{address}{path}")
            assert reply.status_code == 401
            assert isinstance(reply.json()["error"], str)


def test_before_there_is_a_model_it_is_live_and_not_ready(tmp_path: Path) -> None:
    with serving(tmp_path / "none.onnx", until="livez", BENTOML_HOME=str(tmp_path / "home")) as address:
        assert httpx.get(f"{address}/v2/health/live").status_code == 200
        for path in ("/v2/health/ready", f"{MODEL}/ready", MODEL):
            assert httpx.get(f"{address}{path}").status_code == 503
