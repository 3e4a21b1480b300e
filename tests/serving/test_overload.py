"""Ten times as many requests as the server can answer, open loop, against a real server on a core of its own."""

import http.client
import os
import shutil
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.bench.load import closed_loop
from tests.bench.open_loop import SETTLE_S, arrivals
from tests.bench.pictures import CLASSES, picture, trained
from tests.bench.process import LOAD_CORE, Process
from tests.bench.servers import SERVERS, raw

TIMES = 10
SECONDS = 4  # less than the server's keep-alive: a connection that it closes could take a request with it
CONNECTIONS = 1000  # more than the server lets in, so that it is the server that says no

pytestmark = [
    pytest.mark.alone,
    pytest.mark.flaky(reruns=2),  # other work on the cores only slows it down
    pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="the server and the load need a core each"),
    pytest.mark.skipif(shutil.which("wrk") is None, reason="wrk is not installed"),
]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Slow enough for ten times its capacity to be no more than one client can send."""
    return trained("large-cnn", tmp_path_factory.mktemp("overload"))


@pytest.fixture(params=["1", "128"])
def server(request: pytest.FixtureRequest, model: Path, tmp_path: Path) -> Iterator[Process]:
    ours = replace(SERVERS[0], environment=SERVERS[0].environment | {"TWINLENS_MAX_QUEUE": request.param})
    before = os.sched_getaffinity(0)
    process = Process(ours, Path(sys.executable).parent, model, tmp_path)
    process.facts["queue"] = int(request.param)
    try:
        os.sched_setaffinity(0, {LOAD_CORE})
        process.wait_until_ready(raw(picture(0, "small", 0)))
        yield process
    finally:
        process.stop()
        os.sched_setaffinity(0, before)


@pytest.mark.timeout(300)
def test_at_ten_times_capacity_every_reply_is_quick(server: Process, tmp_path: Path) -> None:
    queue = server.facts["queue"]
    requests = [raw(picture(label, "small", 999)) for label in range(CLASSES)]
    capacity = closed_loop(server.address, requests, min(32, queue), 3, tmp_path)
    assert capacity.errors == 0, "clients who wait for their answers are no overload"
    rate = capacity.requests / capacity.seconds
    image = requests[0].body
    client = _Client(server)
    alone = np.quantile([client.post(image)[0] for _ in range(300)], 0.95)
    probes: list[float] = []
    advice: set[str | None] = set()
    ended = threading.Event()

    def look() -> None:
        while not ended.wait(0.05):
            probes.append(client.get("/livez"))
            _, reply = client.post(image)
            if reply.status == 429:
                advice.add(reply.headers["Retry-After"])

    looking = threading.Thread(target=look)
    looking.start()
    answers = arrivals(server.port, requests, TIMES * rate, SECONDS, seed=0, connections=CONNECTIONS)
    ended.set()
    looking.join()
    client.close()
    settled = [answer for answer in answers if answer.due_s >= SETTLE_S]  # the connections are open by then
    accepted, refused = ([a.latency_s for a in settled if a.status == status] for status in (200, 429))
    answered = len(accepted) / (SECONDS - SETTLE_S)
    print(
        f"{queue} admitted: capacity {rate:.0f}/s, alone p95 {alone * 1e3:.1f} ms; at {TIMES * rate:.0f}/s "
        f"{answered:.0f}/s accepted, p95 {np.quantile(accepted, 0.95) * 1e3:.1f} ms; "
        f"refused p99 {np.quantile(refused, 0.99) * 1e3:.1f} ms; /livez at most {max(probes) * 1e3:.1f} ms"
    )
    assert {answer.status for answer in answers} == {200, 429}
    assert advice == {"1"}
    assert answered > rate / 8, "what it can answer it does; refusing nine of ten takes most of a slow core"
    longest = 2 * queue / min(rate, answered)  # no longer than all admitted images take
    assert np.quantile(accepted, 0.95) <= longest
    assert np.median(refused) <= 0.1
    assert np.quantile(refused, 0.99) <= max(0.1, longest), "a refusal takes no longer than an answer"
    assert max(probes) <= 0.5


class _Client:
    """One connection; each request returns its reply and the seconds to the end of it."""

    def __init__(self, server: Process) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", server.port)

    def close(self) -> None:
        self._connection.close()

    def get(self, path: str) -> float:
        return self._ask("GET", path)[0]

    def post(self, image: bytes) -> tuple[float, http.client.HTTPResponse]:
        return self._ask("POST", "/predict", image, {"Content-Type": "image/jpeg"})

    def _ask(self, *request: Any) -> tuple[float, http.client.HTTPResponse]:
        start = time.perf_counter()
        self._connection.request(*request)
        reply = self._connection.getresponse()
        reply.read()
        assert reply.status in (200, 429)
        return time.perf_counter() - start, reply
