"""The comparison of servers: its load is what it says, its pictures are what they should be, its verdicts follow."""

import json
import re
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from serving.contract.model import open_model
from tests.bench.load import closed_loop
from tests.bench.open_loop import open_loop
from tests.bench.pictures import CLASSES, SIZES, picture, trained
from tests.bench.servers import AGAIN, FASTAPI, LITSERVE, OURS, PEERS, SERVERS, raw
from tests.bench.table import RUNTIME, markdown
from tests.support.paths import ROOT
from tests.support.pictures import opened

WRK = pytest.mark.skipif(not shutil.which("wrk"), reason="wrk is not installed")


@contextmanager
def answering(answer: Callable[[int], bytes | None]) -> Iterator[int]:
    """A server on the loopback, one request at a time: `answer` gives the bytes for the nth, None closes. Its port."""
    listener = socket.create_server(("127.0.0.1", 0), backlog=128)
    served = 0
    lock = threading.Lock()

    def converse(connection: socket.socket) -> None:
        nonlocal served
        with connection, suppress(ConnectionError):
            while b"\r\n\r\n" in connection.recv(1 << 16):
                with lock:
                    data = answer(served)
                    served += 1
                if data is None:
                    return
                connection.sendall(data)

    def accept() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=converse, args=(connection,), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    try:
        yield int(listener.getsockname()[1])
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()


OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"
FAILED = b"HTTP/1.1 500 Internal Server Error\r\nContent-Length: 2\r\n\r\n{}"


def stalling(number: int) -> bytes:
    """Stops once for 0.8 s, in the second second of 100 requests a second."""
    if number == 150:
        threading.Event().wait(0.8)
    return OK


def test_a_stall_is_seen_by_all_who_came_meanwhile() -> None:
    with answering(stalling) as port:
        outcome = open_loop(port, [raw(b"image")], rate=100, seconds=2, seed=0)
    assert outcome.errors == 0
    assert outcome.requests == 300
    assert outcome.p99_ms > 600  # a closed loop would have lost 1 request of 200 to it, and a p99 of about 0
    assert outcome.p50_ms < 300


def test_failures_of_the_open_loop_are_counted() -> None:
    with answering(lambda number: FAILED if number % 10 == 0 else OK) as port:
        assert open_loop(port, [raw(b"image")], rate=100, seconds=1, seed=0).errors == 20
    with answering(lambda number: None if number % 10 == 0 else OK) as port:
        outcome = open_loop(port, [raw(b"image")], rate=100, seconds=1, seed=0)
        assert (outcome.requests, outcome.errors) == (200, 20)


@WRK
def test_failures_of_the_closed_loop_are_counted(tmp_path: Path) -> None:
    with answering(lambda number: FAILED if number % 2 == 0 else OK) as port:
        outcome = closed_loop(f"http://127.0.0.1:{port}", [raw(b"image"), raw(b"another")], 2, 1, tmp_path)
    assert outcome.requests > 50
    assert abs(outcome.errors - outcome.requests / 2) <= 2


@pytest.mark.parametrize(("size", "wanted"), [("small", 3_900), ("large", 60_000)])
def test_pictures_have_the_sizes_that_are_asked_for(size: str, wanted: int) -> None:
    files = [picture(label, size, seed=999) for label in range(CLASSES)]
    assert files == [picture(label, size, seed=999) for label in range(CLASSES)]
    assert np.mean([len(file) for file in files]) == pytest.approx(wanted, rel=0.08)
    decoded = [opened(file) for file in files]
    assert {pixels.shape for pixels in decoded} == {(*SIZES[size], 3)}


def test_only_the_servers_differ() -> None:
    ours = (ROOT / "constraints.txt").read_text()
    for requirements in PEERS.glob("*/requirements.txt"):
        text = requirements.read_text()
        for package in RUNTIME:
            [pinned] = re.findall(rf"^{package}==.*$", ours, flags=re.MULTILINE)
            wanted = package if "--constraint ../../../../constraints.txt" in text else pinned
            assert re.search(rf"^{wanted}$", text, flags=re.MULTILINE), f"{requirements}: {wanted}"
    assert {server.folder for server in SERVERS} == {ROOT, *(path.parent for path in PEERS.glob("*/requirements.txt"))}


def results(**rates: list[float]) -> dict[str, Any]:
    """Rounds in which nothing but the rate at c = 32 was measured, of every server named."""
    names = {"ours": OURS, "again": AGAIN, "fastapi": FASTAPI, "litserve": LITSERVE}
    blocks = [
        {"round": number, "server": names[name], "image": "small", "load": "c = 32", "rps": rps, "cpu_us": 1e6 / rps,
         "requests": 10, "errors": 1}
        for name, values in rates.items()
        for number, rps in enumerate(values)
    ]  # fmt: skip
    packages = dict.fromkeys((*RUNTIME, "fastapi", "litserve"), "1.0")
    environment = {"date": "today", "processor": "one", "cores": 2, "python": "3.11", "wrk": "wrk 4", "revision": "abc",
                   "busy_before_percent": 1.0, "packages": {names[name]: packages for name in rates}}  # fmt: skip
    return {"environment": environment, "rounds": 3, "seconds": 4, "model": "mlp", "unavailable": [], "blocks": blocks,
            "processes": []}  # fmt: skip


def test_verdicts_follow_from_the_ratios_within_rounds() -> None:
    text = markdown(results(ours=[100, 200, 400], again=[99, 202, 400], fastapi=[50, 80, 200], litserve=[50, 80, 200]))
    assert (
        "| ours / FastAPI + ONNX Runtime, requests/s | c = 32 | at least 2 | 2.00 | 2.00 to 2.50 | yes | 2.00 |" in text
    )
    assert "| ours / LitServe, requests/s | c = 32 | at least 2.5 | 2.00 | 2.00 to 2.50 | **no** | 2.00 |" in text
    assert f"| {OURS} |  |  | 200 | 5,000 |" in text
    assert "120 requests, 12 errors" in text
    assert "void" not in text


def test_a_run_whose_control_differs_is_void() -> None:
    assert "void" in markdown(results(ours=[100, 100, 100], again=[96, 99, 96]))
    assert "Without a control" in markdown(results(ours=[100, 100, 100]))


@WRK
@pytest.mark.alone
@pytest.mark.long
def test_ours_and_a_peer_are_measured(run: Path, tmp_path: Path) -> None:
    options = ["--rounds", "1", "--seconds", "1", "--only", OURS, FASTAPI, "--model", str(run / "model.onnx")]
    command = [sys.executable, "-m", "tests.bench.serving", *options, "--folder", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stderr
    measured = json.loads((tmp_path / "serving.json").read_text())
    loads = {(block["server"], block["image"], block["load"]) for block in measured["blocks"] if "requests" in block}
    closed = {(size, f"c = {concurrency}") for size in SIZES for concurrency in (1, 8, 32)}
    assert loads == {
        (name, *load) for name in (OURS, FASTAPI) for load in closed | {("small", "70 %"), ("small", "common")}
    }
    assert sum(block.get("errors", 0) for block in measured["blocks"]) == 0
    assert all(0 < block["cpu_us"] < 1e6 for block in measured["blocks"])
    assert {process["server"] for process in measured["processes"] if process["requests"] >= 2500} == {OURS, FASTAPI}
    assert "| ours / FastAPI + ONNX Runtime, p50 | c = 1 |" in done.stdout


@pytest.mark.long
def test_the_pretrained_model_has_a_file_in_eight_bits_for_the_servers(tmp_path: Path) -> None:
    model = trained("lite0", tmp_path)
    assert open_model(model.with_name("model.int8.onnx")).card.version == f"{open_model(model).card.version}-int8"


def test_an_unknown_server_is_refused_by_name(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.bench.serving", "--only", "Fastapi", "--folder", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode != 0
    assert "no server 'Fastapi'" in done.stderr
    assert FASTAPI in done.stderr
