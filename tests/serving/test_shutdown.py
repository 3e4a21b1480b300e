import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import numpy as np
import pytest

from tests.support.paths import ROOT
from tests.support.server import free_port, started


def half_sent(address: str, body: bytes) -> socket.socket:
    """A connection on which a request's headers and half of its body have been sent."""
    connection = socket.create_connection(("127.0.0.1", urlsplit(address).port), timeout=30)
    head = (
        f"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/png\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    connection.sendall(head.encode() + body[: len(body) // 2])
    return connection


def test_a_shutdown_answers_running_requests_and_refuses_new_ones(
    run: Path, tmp_path: Path, png: Callable[..., bytes]
) -> None:
    body = png(np.full((40, 40, 3), 90, np.uint8))
    with started(run / "model.onnx", tmp_path / "home", tmp_path / "log") as (server, address):
        under_way = [half_sent(address, body) for _ in range(3)]
        time.sleep(0.5)
        server.send_signal(signal.SIGTERM)
        time.sleep(0.5)
        assert httpx.get(f"{address}/readyz").json()["error"]["code"] == "shutting_down"
        assert httpx.get(f"{address}/v2/health/ready").status_code == 503
        for path in ("/livez", "/v2/health/live"):
            assert httpx.get(f"{address}{path}").status_code == 200
        refused = httpx.post(f"{address}/predict", files={"image": body})
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "shutting_down")
        assert refused.headers["retry-after"]
        for connection in under_way:
            connection.sendall(body[len(body) // 2 :])
            assert connection.recv(65_536).startswith(b"HTTP/1.1 200 OK")
            connection.close()
        assert server.wait(timeout=30) == 0
    left = [path.name for path in (tmp_path / "home").rglob("*") if not path.is_dir()]
    assert {name.partition("_")[0] for name in left} == {"counter", "histogram"}, "which the next start deletes"
    lines = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]
    assert all({"time", "level", "logger", "message"} <= set(line) for line in lines)


@pytest.mark.slow
def test_a_request_longer_than_the_grace_period_is_cut_off(run: Path, tmp_path: Path) -> None:
    with started(run / "model.onnx", tmp_path / "home", tmp_path / "log", TWINLENS_GRACE_S="1") as (server, address):
        under_way = half_sent(address, bytes(100))
        time.sleep(0.5)
        server.send_signal(signal.SIGTERM)
        assert under_way.recv(65_536).startswith(b"HTTP/1.1 503")
        under_way.close()
        assert server.wait(timeout=20) == 0


def test_a_signal_during_the_start_ends_it(run: Path, tmp_path: Path) -> None:
    """BentoML's process manager drops one that comes while it starts its processes; the next one ends it."""
    variables = {"TWINLENS_MODEL": str(run / "model.onnx"), "BENTOML_HOME": str(tmp_path)}
    command = [sys.executable, "-m", "bentoml", "serve", "--port", str(free_port())]
    for wait_s in (0.3, 1.5, 3):
        with subprocess.Popen(
            command, cwd=ROOT, env=os.environ | variables, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        ) as server:
            time.sleep(wait_s)
            server.send_signal(signal.SIGTERM)
            try:
                server.wait(timeout=20)
            except subprocess.TimeoutExpired:
                server.send_signal(signal.SIGTERM)
                server.wait(timeout=30)
