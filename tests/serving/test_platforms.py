"""`python -m serving`, the image's command, with the variables that Cloud Run, Vertex AI and KServe set."""

import base64
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from serving import __main__ as command
from tests.support.paths import ROOT
from tests.support.pictures import COLOURS, picture
from tests.support.replies import error, metric
from tests.support.server import START_S, free_port, wait_until_ready

HEALTH = "/v1/endpoints/12/deployedModels/34"
PREDICT = f"{HEALTH}:predict"


@contextmanager
def container(
    model: Path | None, home: Path, *arguments: str, probe: str = "/readyz", **environment: str
) -> Iterator[str]:
    """The image's command; gives the address at which it is ready, on the port that one of the variables names."""
    [port] = [value for name, value in environment.items() if name.endswith("PORT")]
    ours = {"BENTOML_HOST": "127.0.0.1", "BENTOML_HOME": str(home), "TMPDIR": str(home)}
    ours |= {"TWINLENS_MODEL": str(model)} if model else {}
    with (home / "log").open("w+b") as output:
        command = [sys.executable, "-m", "serving", *arguments]
        server = subprocess.Popen(command, cwd=ROOT, env=os.environ | ours | environment, stdout=output, stderr=output)
        try:
            wait_until_ready(server, f"http://127.0.0.1:{port}{probe}", output)
            yield f"http://127.0.0.1:{port}"
        finally:
            server.send_signal(signal.SIGTERM)
            server.wait(START_S)


@pytest.fixture(scope="module")
def vertex(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    given = {"AIP_HTTP_PORT": str(free_port()), "AIP_HEALTH_ROUTE": HEALTH, "AIP_PREDICT_ROUTE": PREDICT}
    home = tmp_path_factory.mktemp("home")
    given["AIP_STORAGE_URI"] = f"file://{run}/"
    with container(None, home, probe=HEALTH, **given, TWINLENS_MAX_BYTES="100000") as address:
        yield address


def as_instance(image: bytes) -> dict[str, str]:
    return {"b64": base64.b64encode(image).decode()}


def test_proxies_are_the_first_to_close_idle_connections(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[list[str]] = []
    monkeypatch.setattr(os, "execve", lambda file, words, environment: started.append(words))
    command.main([])
    command.main(["serve", "--timeout-keep-alive", "20"])
    assert [words[3:] for words in started] == [
        ["serve", command.SERVICE, "--timeout-keep-alive=75"],
        ["serve", command.SERVICE, "--timeout-keep-alive=75", "--timeout-keep-alive", "20"],
    ]


def test_cloud_run_names_the_port(run: Path, tmp_path: Path, png: Callable[..., bytes]) -> None:
    other = {"AIP_STORAGE_URI": "gs://bucket/folder"}  # TWINLENS_MODEL has precedence
    with container(run / "model.onnx", tmp_path, PORT=str(free_port()), **other) as address:
        reply = httpx.post(f"{address}/predict", files={"image": png(picture("blue"))})
        assert reply.json()["label"] == "blue"


def test_sagemakers_port_is_not_that_of_cloud_run(run: Path, tmp_path: Path) -> None:
    """And an explicit one is neither."""
    port = str(free_port())
    with container(run / "model.onnx", tmp_path, "serve", probe="/ping", BENTOML_PORT=port) as address:
        assert httpx.get(f"{address}/ping").status_code == 200


def test_vertex_ai_names_port_and_routes(vertex: str, png: Callable[..., bytes]) -> None:
    instances = [as_instance(png(picture(label))) for label in COLOURS]
    reply = httpx.post(f"{vertex}{PREDICT}", json={"instances": instances, "parameters": {"top_k": 1}})
    assert reply.status_code == 200, reply.text
    predictions = reply.json()["predictions"]
    assert [one["label"] for one in predictions] == list(COLOURS)
    assert [len(one["probabilities"]) for one in predictions] == [1] * len(COLOURS)
    one = httpx.post(f"{vertex}/predict", files={"image": png(picture("blue"))}).json()
    [same] = httpx.post(f"{vertex}{PREDICT}", json={"instances": [as_instance(png(picture("blue")))]}).json()[
        "predictions"
    ]
    assert same == one, "the answer of /predict"


def test_one_wrong_instance_has_its_own_error(vertex: str, png: Callable[..., bytes]) -> None:
    instances = [as_instance(png(picture("blue"))), as_instance(b"no picture")]
    good, bad = httpx.post(f"{vertex}{PREDICT}", json={"instances": instances}).json()["predictions"]
    assert good["label"] == "blue"
    assert bad["error"]["code"] == "unsupported_image_format"


def test_the_routes_of_vertex_ai_are_counted_by_the_names_of_ours(vertex: str) -> None:
    httpx.post(f"{vertex}{PREDICT}", json={"instances": [as_instance(b"no picture")]})
    text = httpx.get(f"{vertex}/metrics").text
    assert metric(text, "twinlens_requests_total", route="/predict_instances", status="200") >= 1
    assert metric(text, "twinlens_requests_total", route="/readyz", status="200") >= 1
    assert "/v1/endpoints" not in text


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        ({"instances": []}, 400, "too_many_files"),
        ({"instances": [{"b64": ""}] * 33}, 400, "too_many_files"),
        ({"instances": [{"b64": ""}] * 11_000}, 400, "too_many_files"),
        ({"instances": [0] * 20_000}, 400, "malformed_instances"),
        ({"instances": [{"b64": "no base64!"}]}, 400, "malformed_instances"),
        ({"instances": [{"b64": 1}]}, 400, "malformed_instances"),
        ({"instances": ["aGVsbG8="]}, 400, "malformed_instances"),
        ({"instances": [{"b64": "aGVsbG8="}], "parameters": {"top_k": 0}}, 400, "malformed_instances"),
        ({"images": []}, 400, "malformed_instances"),
        ([], 400, "malformed_instances"),
        ({"instances": [{"b64": "A" * 200_000}]}, 413, "payload_too_large"),
    ],
    ids=lambda value: str(value)[:50],
)
def test_other_json_is_refused(vertex: str, body: object, status: int, code: str) -> None:
    reply = httpx.post(f"{vertex}{PREDICT}", json=body)
    assert (reply.status_code, error(reply)) == (status, code)
    assert httpx.post(f"{vertex}/predict_instances", json=body).status_code == status


def test_a_model_of_kserve_has_the_name_of_its_service(run: Path, tmp_path: Path, png: Callable[..., bytes]) -> None:
    tensor = {"name": "files", "datatype": "BYTES", "shape": [1], "data": [as_instance(png(picture("blue")))["b64"]]}
    tokens = tmp_path / "tokens"
    tokens.write_text("secret")
    given = {"BENTOML_PORT": str(free_port()), "TWINLENS_NAME": "cells", "TWINLENS_TOKEN_FILE": str(tokens)}
    with container(run / "model.onnx", tmp_path, probe="/v2/models/cells/ready", **given) as address:
        headers = {"Authorization": "Bearer secret"}
        reply = httpx.post(f"{address}/v2/models/cells/infer", json={"inputs": [tensor]}, headers=headers)
        assert reply.json()["model_name"] == "cells"
        assert httpx.get(f"{address}/v2/models/cells", headers=headers).json()["name"] == "cells"
        assert httpx.get(f"{address}/v2", headers=headers).json()["name"] == "cells"
        documented = httpx.get(f"{address}/docs.json", headers=headers).json()["components"]["parameters"]["name"]
        assert documented["schema"]["enum"] == ["cells"]
        assert httpx.get(f"{address}/v2/models/twinlens", headers=headers).status_code == 404
        assert httpx.get(f"{address}/v2/models/twinlens/ready").status_code == 401
