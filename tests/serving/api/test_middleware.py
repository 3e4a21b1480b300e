import asyncio
import hashlib
import json
import logging
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import numpy as np
import pytest
from prometheus_client import CollectorRegistry
from starlette.types import Message, Receive

from serving.api.admission import Admission
from serving.api.middleware import ANY, LOOPBACK, Middleware
from serving.api.readiness import Readiness
from serving.api.state import ServiceState
from serving.api.ui import Page
from serving.contract.model import open_model
from serving.inference.occlusion import Explainer
from serving.inference.predictor import Predictor
from serving.inference.similar import Searcher
from serving.logs import FIELDS
from serving.metrics import Metrics
from serving.settings import Settings
from tests.support.replies import error, metric
from tests.support.server import serving


def connection_to(address: str) -> socket.socket:
    return socket.create_connection(("127.0.0.1", urlsplit(address).port), timeout=30)


def test_unknown_paths_add_no_series(server: str) -> None:
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
            b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/png\r\n"
            b"Content-Length: 999999999\r\nExpect: 100-continue\r\n\r\n"
        )
        assert connection.recv(65_536).startswith(b"HTTP/1.1 413")


@dataclass(frozen=True)
class Guarded:
    """A server with a token file, a log of every request, and a short idle limit."""

    address: str
    tokens: Path
    log: Path

    def get(self, path: str, token: str | None = None) -> httpx.Response:
        return httpx.get(f"{self.address}{path}", headers={"Authorization": token} if token else {})

    def post(self, image: bytes, token: str | None) -> httpx.Response:
        headers = {"X-Request-ID": "its-id"} | ({"Authorization": token} if token else {})
        return httpx.post(f"{self.address}/predict", files={"image": ("secret name.png", image)}, headers=headers)


@pytest.fixture(scope="module")
def image(png: Callable[..., bytes]) -> bytes:
    return png(np.full((40, 40, 3), 90, np.uint8))


@pytest.fixture(scope="module")
def guarded(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guarded]:
    folder = tmp_path_factory.mktemp("guarded")
    tokens, log = folder / "tokens", folder / "log"
    tokens.write_text("first\n")
    settings = {"TOKEN_FILE": str(tokens), "PROTECT_METRICS": "1", "LOG_REQUESTS": "1", "IDLE_S": "1"}
    environment = {f"TWINLENS_{name}": value for name, value in settings.items()}
    with serving(run / "model.onnx", log=log, BENTOML_HOME=str(folder / "home"), **environment) as address:
        yield Guarded(address, tokens, log)


@pytest.fixture(autouse=True)
def _first_token(request: pytest.FixtureRequest) -> Iterator[None]:
    yield
    if "guarded" in request.fixturenames:
        request.getfixturevalue("guarded").tokens.write_text("first\n")


def test_a_request_needs_a_token_and_a_probe_does_not(guarded: Guarded, image: bytes) -> None:
    before = metric(guarded.get("/metrics", "Bearer first").text, "twinlens_requests_total", status="401")
    for token in (None, "Bearer second", "Basic first", "Bearer"):
        reply = guarded.post(image, token)
        assert (reply.status_code, error(reply)) == (401, "unauthorized")
        assert reply.headers["www-authenticate"] == "Bearer"
    assert guarded.post(image, "Bearer first").status_code == 200
    statuses = {path: guarded.get(path).status_code for path in ("/livez", "/readyz", "/ui", "/metrics", "/model")}
    assert statuses == {"/livez": 200, "/readyz": 200, "/ui": 200, "/metrics": 401, "/model": 401}
    after = guarded.get("/metrics", "Bearer first").text
    assert metric(after, "twinlens_requests_total", status="401") == before + 6


def test_a_changed_token_file_is_read_at_the_next_request(guarded: Guarded, image: bytes) -> None:
    guarded.tokens.write_text("first\nsecond\n")
    assert guarded.post(image, "Bearer second").status_code == guarded.post(image, "bearer first").status_code == 200
    guarded.tokens.unlink()
    assert guarded.post(image, "Bearer second").status_code == 200, "a mount that is being replaced"
    guarded.tokens.write_text("# of ward 3\nthird\n")
    assert guarded.post(image, "Bearer second").status_code == 401, "a malformed file withdraws tokens, too"
    assert guarded.post(image, "Bearer ward").status_code == 401
    assert guarded.post(image, "Bearer third").status_code == 200
    guarded.tokens.write_text("")
    assert guarded.post(image, "Bearer third").status_code == guarded.post(image, "Bearer").status_code == 401
    log = guarded.log.read_text()
    for fault in ("the previous tokens stay valid", "line 1 has a blank", "the file holds no token"):
        assert fault in log


def test_an_upload_that_stalls_ends_with_408(guarded: Guarded) -> None:
    with connection_to(guarded.address) as stalled:
        start = time.monotonic()  # before the upload: the server's second begins when it has arrived
        stalled.sendall(
            b"POST /predict HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer first\r\n"
            b"Content-Type: image/png\r\nContent-Length: 9\r\n\r\n1"
        )
        assert stalled.recv(65_536).startswith(b"HTTP/1.1 408")
        assert 1 <= time.monotonic() - start < Settings().timeout_s, "after TWINLENS_IDLE_S, long before TIMEOUT_S"


def test_a_log_line_describes_the_request_without_its_file_name(guarded: Guarded, image: bytes) -> None:
    guarded.post(image, None)
    guarded.post(image, "Bearer first")
    text = guarded.log.read_text()
    assert "secret name" not in text
    lines = [json.loads(line) for line in text.splitlines()]
    answered = next(line for line in lines if line.get("route") == "/predict" and line["status"] == 200)
    assert answered["request_id"] == "its-id"
    assert answered["images"] == [hashlib.sha256(image).hexdigest()[:12]]
    assert 0 < answered["confidence"] <= 1
    assert answered["label"]
    assert answered["seconds"] > 0
    refused = next(line for line in lines if line.get("route") == "/predict" and line["status"] == 401)
    assert refused["code"] == "unauthorized"


def test_a_line_of_a_slow_request_has_no_result(run: Path, image: bytes, caplog: pytest.LogCaptureFixture) -> None:
    """With TWINLENS_LOG_REQUESTS it has, as the line above."""

    async def receive() -> Message:
        return {"type": "http.request", "body": image, "more_body": False}

    with caplog.at_level(logging.INFO):
        asyncio.run(InProcess(run / "model.onnx", Settings(slow_s=1e-9)).post(receive))
    [fields] = [getattr(record, FIELDS) for record in caplog.records if record.name == "bentoml.twinlens.requests"]
    assert fields.keys() == {"request_id", "route", "status", "seconds"}


LOCAL = ("localhost", "localhost.:3000", "LOCALHOST:3000", "127.0.0.1", "[::1]:80")


def test_a_service_of_one_machine_answers_no_page_of_another_name(server: str) -> None:
    for host in ("evil.example", "evil.example:3000", "127.0.0.1.evil.example", ""):
        reply = httpx.get(f"{server}/model", headers={"Host": host})
        assert (reply.status_code, error(reply)) == (421, "misdirected_request")
        assert httpx.get(f"{server}/readyz", headers={"Host": host}).status_code == 200, "a probe"
    assert {httpx.get(f"{server}/model", headers={"Host": host}).status_code for host in LOCAL} == {200}


def test_hosts_are_those_of_the_setting(run: Path) -> None:
    async def receive() -> Message:
        return {"type": "http.disconnect"}

    def status(hosts: frozenset[str] | None, *given: bytes, path: str = "/predict") -> int:
        service = InProcess(run / "model.onnx", Settings(hosts=hosts), hosts=LOOPBACK)
        asyncio.run(service.post(receive, *[(b"host", host) for host in given], path=path))
        return service.statuses[0]

    ours = frozenset({"clinic.example"})
    assert status(ours, b"Clinic.example:443") == status(ours) == status(ANY, b"evil.example") == 499
    assert status(ours, b"localhost") == status(ours, b"clinic.example", b"evil.example") == 421
    assert status(ours, b"10.0.0.7:3000", path="/metrics") == 405, "Prometheus names the address of a pod"
    assert status(None, b"evil.example", path="/metrics") == 421


PROBES = ("/readyz", "/ping", "/v2/health/ready", "/v2/models/twinlens/ready")


def test_what_is_no_fault_of_an_input_is_not_counted_as_one(tmp_path: Path, image: bytes) -> None:
    """A service that waits for its model: probes fail every few seconds, and so does each request."""
    token = {"Authorization": "Bearer first"}
    (tmp_path / "tokens").write_text("first\n")
    home, tokens = str(tmp_path / "home"), str(tmp_path / "tokens")
    with serving(tmp_path / "none.onnx", until="livez", BENTOML_HOME=home, TWINLENS_TOKEN_FILE=tokens) as address:
        assert [httpx.get(f"{address}{path}").status_code for path in PROBES] == [503] * 4
        assert httpx.post(f"{address}/readyz").status_code == 405
        refused = [
            httpx.post(f"{address}/predict", content=image).status_code,
            httpx.get(f"{address}/predict", headers=token).status_code,
            httpx.post(f"{address}/predict", content=image, headers=token).status_code,
        ]
        assert refused == [401, 405, 503]
        before = httpx.get(f"{address}/metrics").text
        assert httpx.post(f"{address}/predict?top_k=none", content=image, headers=token).status_code == 400
        after = httpx.get(f"{address}/metrics").text
    assert metric(before, "twinlens_rejected_inputs_total") == 0
    assert metric(after, "twinlens_rejected_inputs_total", reason="invalid_top_k") == 1
    assert metric(after, "twinlens_rejected_inputs_total") == 1
    assert metric(before, "twinlens_requests_total", route="/readyz", status="503") == len(PROBES)
    assert metric(before, "twinlens_request_seconds_count", route="/predict") == 0, "no work was done"
    assert metric(after, "twinlens_request_seconds_count", route="/predict") == 1


def test_metrics_count_an_alias_under_its_route(server: str, image: bytes) -> None:
    """A method that is not allowed and a refusal are counted under the route's name, too."""
    names = {"/ping": "/readyz", "/invocations": "/predict", "/v2/models/twinlens/infer": "/v2/models/{name}/infer"}
    names |= {"/v2/health/live": "/livez", "/v2/health/ready": "/readyz"}
    names |= dict.fromkeys([f"/v2/models/twinlens{version}/ready" for version in ("", "/versions/none")], "/readyz")
    for path, name in names.items():
        before = metric(httpx.get(f"{server}/metrics").text, "twinlens_requests_total", route=name)
        httpx.get(f"{server}{path}")
        text = httpx.get(f"{server}/metrics").text
        assert metric(text, "twinlens_requests_total", route=name) == before + 1
        assert f'route="{path}"' not in text


class InProcess:
    """The application of a worker, without its process; the statuses of its answers."""

    def __init__(self, model: Path, settings: Settings | None = None, hosts: frozenset[str] = ANY) -> None:
        settings, self.registry = settings or Settings(), CollectorRegistry()
        metrics = Metrics(self.registry)
        state = ServiceState(
            settings=settings,
            metrics=metrics,
            admission=Admission(max_images=settings.max_queue, max_bytes=settings.max_bytes),
            readiness=Readiness(),
            explainer=Explainer(settings, metrics),
            searcher=Searcher(settings, metrics),
            page=Page.load(),
            openapi={},
            bento_schema={},
        )
        classifier = open_model(model)
        metrics.serves(classifier)
        state.readiness.predictor = Predictor(classifier, settings, metrics)
        self.middleware = Middleware(state, hosts)
        self.statuses: list[int] = []

    async def post(self, receive: Receive, *more: tuple[bytes, bytes], path: str = "/predict") -> None:
        headers = [(b"content-type", b"image/png"), (b"transfer-encoding", b"chunked"), *more]
        scope = {"type": "http", "method": "POST", "path": path, "query_string": b"", "headers": headers}
        await self.middleware(scope | {"state": {}}, receive, self._send)

    async def _send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.statuses.append(message["status"])


def test_a_slow_upload_is_not_in_the_time_of_an_answer(run: Path, image: bytes) -> None:
    service = InProcess(run / "model.onnx")

    async def receive() -> Message:
        await asyncio.sleep(0.5)
        return {"type": "http.request", "body": image, "more_body": False}

    asyncio.run(service.post(receive))
    assert service.statuses == [200]
    seconds = service.registry.get_sample_value("twinlens_request_seconds_sum", {"route": "/predict"})
    assert seconds is not None
    assert 0 < seconds < 0.4


def test_a_drain_ends_when_the_requests_that_it_cuts_off_have_their_answer(run: Path) -> None:
    service = InProcess(run / "model.onnx")

    async def receive() -> Message:
        await asyncio.sleep(0.01 if service.statuses else 60)
        return {"type": "http.disconnect"}

    async def scenario() -> list[int]:
        requests = [asyncio.create_task(service.post(receive)) for _ in range(3)]
        await asyncio.sleep(0.05)
        await service.middleware.drain(0.01)
        answered = list(service.statuses)
        await asyncio.gather(*requests)
        return answered

    assert asyncio.run(scenario()) == [503, 503, 503]
