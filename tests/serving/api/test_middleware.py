import hashlib
import json
import socket
import time
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import numpy as np

from tests.support.replies import error, metric
from tests.support.server import serving


def connection_to(address: str) -> socket.socket:
    return socket.create_connection(("127.0.0.1", urlsplit(address).port), timeout=30)


def test_paths_that_anybody_makes_up_make_no_series(server: str) -> None:
    httpx.get(f"{server}/nope")
    before = httpx.get(f"{server}/metrics").text
    with httpx.Client() as client:
        for number in range(2000):
            client.get(f"{server}/{number:x}")
    after = httpx.get(f"{server}/metrics").text
    assert len(after.splitlines()) <= len(before.splitlines()) + 20  # /metrics itself has been counted by then
    grown = metric(after, "twinlens_requests_total", route="other") - metric(
        before, "twinlens_requests_total", route="other"
    )
    assert grown == 2000


def test_every_answer_has_a_request_id(server: str) -> None:
    for path in ("/model", "/livez", "/nope", "/metrics"):
        assert len(httpx.get(f"{server}{path}").headers["x-request-id"]) == 32
    assert httpx.get(f"{server}/model", headers={"X-Request-ID": "a.b:c-1"}).headers["x-request-id"] == "a.b:c-1"


def test_an_oversized_body_is_refused_before_it_is_sent(server: str) -> None:
    with connection_to(server) as connection:
        connection.sendall(
            b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\n"
            b"Content-Length: 999999999\r\nExpect: 100-continue\r\n\r\n"
        )
        assert connection.recv(65_536).startswith(b"HTTP/1.1 413")


def test_token_deadline_and_log(run: Path, tmp_path: Path, png: Callable[..., bytes]) -> None:
    tokens, log = tmp_path / "tokens", tmp_path / "log"
    tokens.write_text("first\n")
    image = png(np.full((40, 40, 3), 90, np.uint8))
    settings = {"TOKEN_FILE": str(tokens), "PROTECT_METRICS": "1", "LOG_REQUESTS": "1", "IDLE_S": "1"}
    environment = {f"TWINLENS_{name}": value for name, value in settings.items()}
    with serving(run / "model.onnx", log=log, BENTOML_HOME=str(tmp_path / "home"), **environment) as address:

        def status(token: str | None, path: str = "/predict") -> int:
            headers = {"X-Request-ID": "its-id"} | ({"Authorization": token} if token else {})
            files = {"image": ("secret name.png", image)} if path == "/predict" else None
            reply = httpx.request("POST" if files else "GET", f"{address}{path}", files=files, headers=headers)
            if reply.status_code == 401:
                assert error(reply) == "unauthorized"
                assert reply.headers["www-authenticate"] == "Bearer"
            return reply.status_code

        assert [status(token) for token in (None, "Bearer second", "Basic first", "Bearer", "Bearer first")] == [
            *[401] * 4,
            200,
        ]
        assert [status(None, path) for path in ("/livez", "/readyz", "/metrics", "/model")] == [200, 200, 401, 401]
        counted = httpx.get(f"{address}/metrics", headers={"Authorization": "Bearer first"}).text
        assert metric(counted, "twinlens_requests_total", route="/predict", status="401") == 4
        tokens.write_text("first\nsecond\n")
        assert status("Bearer second") == status("bearer first") == 200
        tokens.write_text("")
        assert status("Bearer second") == 200, "an empty file takes nobody's token away"
        tokens.write_text("third\n")
        assert (status("Bearer second"), status("Bearer third")) == (401, 200)
        with connection_to(address) as stalled:
            stalled.sendall(
                b"POST /predict HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer third\r\n"
                b"Content-Type: image/png\r\nContent-Length: 9\r\n\r\n1"
            )
            start = time.monotonic()
            assert stalled.recv(65_536).startswith(b"HTTP/1.1 408")
            assert time.monotonic() - start < 4
    text = log.read_text()
    assert "secret name" not in text
    lines = [json.loads(line) for line in text.splitlines()]
    answered = next(line for line in lines if line.get("route") == "/predict" and line["status"] == 200)
    assert answered["request_id"] == "its-id"
    assert answered["images"] == [hashlib.sha256(image).hexdigest()[:12]]
    assert 0 < answered["confidence"] <= 1
    assert answered["label"]
    assert answered["seconds"] > 0
    assert {line["code"] for line in lines if "code" in line} >= {"unauthorized", "upload_timeout"}
