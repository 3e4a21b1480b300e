"""What users of BentoML know: its client, its options, and its configuration for pages elsewhere and for tracing."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise
from pathlib import Path
from threading import Thread
from typing import Any

import httpx
import pytest
from playwright.sync_api import sync_playwright

from serving import bento_config
from tests.support.browser import ARGUMENTS, CHROMIUM
from tests.support.markdown import blocks
from tests.support.otlp import Collector, Span, collector
from tests.support.paths import ROOT
from tests.support.pictures import COLOURS, picture
from tests.support.processes import wait_until
from tests.support.server import serving

TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
ELSEWHERE = "https://clinic.example"
"""The origin of the pages in the README's example."""


def overrides(**config: Any) -> dict[str, Any]:
    """The variable that holds this configuration of the service."""
    return {"BENTOML_CONFIG_OVERRIDES": json.dumps({"services": {"twinlens": config}})}


@pytest.fixture
def images(tmp_path: Path, png: Callable[..., bytes]) -> dict[str, Path]:
    paths = {label: tmp_path / f"{label}.png" for label in COLOURS}
    for label, path in paths.items():
        path.write_bytes(png(picture(label)))
    return paths


CLIENT = """
import json, sys
from pathlib import Path
import bentoml
address, *paths = sys.argv[1:]
images = [Path(path) for path in paths]
with bentoml.SyncHTTPClient(address) as client:
    answers = [client.predict(image=images[0]), client.predict_batch(images=images), client.explain(image=images[0])]
    try:
        client.predict(image=Path("README.md"))
    except bentoml.exceptions.BentoMLException as error:
        answers.append(int(error.error_code))
print(json.dumps(answers))
"""


def test_bentomls_client_knows_the_routes(server: str, images: dict[str, Path]) -> None:
    command = [sys.executable, "-c", CLIENT, server, *map(str, images.values())]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=True)
    one, batch, explanation, status = json.loads(done.stdout)
    [first, *_] = images.values()
    assert one == httpx.post(f"{server}/predict", files={"image": first.read_bytes()}).json()
    assert [result["label"] for result in batch["results"]] == list(images)
    assert explanation["label"] == one["label"]
    assert status == 415


@dataclass(frozen=True)
class Configured:
    """A service with the configuration of its README, and a token; the pages that may call it; its collector."""

    address: str
    pages: Path
    origin: str
    collector: Collector

    def post(self, route: str, **options: Any) -> httpx.Response:
        headers = {"Authorization": "Bearer a-token"} | options.pop("headers", {})
        return httpx.post(f"{self.address}{route}", headers=headers, **options)


@pytest.fixture(scope="module")
def configured(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Configured]:
    pytest.importorskip("opentelemetry.exporter.otlp.proto.http")
    home, pages = tmp_path_factory.mktemp("home"), tmp_path_factory.mktemp("pages")
    (home / "tokens").write_text("a-token")
    [block] = [block for block in blocks(ROOT / "serving" / "README.md") if block.language == "yaml"]
    with (
        collector() as spans,
        ThreadingHTTPServer(("127.0.0.1", 0), partial(SimpleHTTPRequestHandler, directory=str(pages))) as server,
    ):
        Thread(target=server.serve_forever, daemon=True).start()
        origin = f"http://127.0.0.1:{server.server_port}"
        config = block.text.replace(ELSEWHERE, origin).replace("http://collector:4318/v1/traces", spans.address)
        (home / "bentoml.yaml").write_text(config)
        given: dict[str, Any] = {
            "BENTOML_CONFIG": str(home / "bentoml.yaml"),
            "TWINLENS_TOKEN_FILE": str(home / "tokens"),
            "OTEL_BSP_SCHEDULE_DELAY": "50",  # milliseconds until spans are sent, of 5,000
            "OTEL_EXPORTER_OTLP_COMPRESSION": "gzip",
        }
        with serving(run / "model.onnx", BENTOML_HOME=str(home), **given) as address:
            yield Configured(address, pages, origin, spans)
        server.shutdown()


def test_a_preflight_needs_no_token_and_an_answer_says_who_may_read_it(configured: Configured, server: str) -> None:
    asked = {"Origin": configured.origin, "Access-Control-Request-Method": "POST"}
    asked["Access-Control-Request-Headers"] = "authorization,content-type"
    preflight = httpx.options(f"{configured.address}/predict", headers=asked)
    assert preflight.status_code == 200
    assert preflight.headers["access-control-allow-origin"] == configured.origin
    assert "POST" in preflight.headers["access-control-allow-methods"]
    assert "Authorization" in preflight.headers["access-control-allow-headers"]
    refused = httpx.post(f"{configured.address}/predict", headers={"Origin": configured.origin})
    assert refused.status_code == 401
    assert refused.headers["access-control-allow-origin"] == configured.origin, "a page can read a refusal, too"
    assert refused.headers["access-control-expose-headers"] == "X-Request-ID"
    of_another = httpx.options(f"{configured.address}/predict", headers=asked | {"Origin": "http://127.0.0.1:1"})
    assert of_another.status_code == 400
    assert "access-control-allow-origin" not in of_another.headers
    by_default = httpx.options(f"{server}/predict", headers=asked)
    assert by_default.status_code == 405
    assert "access-control-allow-origin" not in by_default.headers


PAGE = """<!doctype html><title>waiting</title><script>
async function ask() {
  const image = await (await fetch("blue.png")).blob();
  const headers = {"Authorization": "Bearer a-token", "Content-Type": "image/png"};
  const reply = await fetch("SERVICE/predict", {method: "POST", body: image, headers});
  document.title = (await reply.json()).label + " " + reply.headers.get("X-Request-ID").length;
}
ask().catch(error => { document.title = "failed: " + error; });
</script>"""


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium; `apt-get install chromium` brings it")
def test_a_page_of_another_origin_is_a_client(configured: Configured, server: str, png: Callable[..., bytes]) -> None:
    (configured.pages / "blue.png").write_bytes(png(picture("blue")))
    (configured.pages / "open.html").write_text(PAGE.replace("SERVICE", configured.address))
    (configured.pages / "closed.html").write_text(PAGE.replace("SERVICE", server))
    titles = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        for name in ("open", "closed"):
            page = browser.new_page()
            page.goto(f"{configured.origin}/{name}.html")
            page.wait_for_function("document.title != 'waiting'")
            titles.append(page.title())
        browser.close()
    assert titles[0] == "blue 32"
    assert titles[1].startswith("failed: TypeError")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "environment", "reason"),
    [
        (["--api-workers", "2"], {}, "--api-workers has no effect here: set TWINLENS_WORKERS"),
        (["--timeout=5"], {}, "--timeout has no effect here: set TWINLENS_TIMEOUT_S"),
        ([], {"BENTOML_API_WORKERS": "2"}, "BENTOML_API_WORKERS has no effect here: set TWINLENS_WORKERS"),
        ([], overrides(workers=2), "workers=2 in BentoML's configuration has no effect here: set TWINLENS_WORKERS"),
        ([], overrides(traffic={"timeout": 5}), "traffic.timeout in BentoML's configuration has no effect here"),
        ([], overrides(traffic={"max_concurrency": 5}), "set TWINLENS_MAX_QUEUE"),
        ([], overrides(http={"cors": {"enabled": True}}), "access_control_allow_origins names none"),
        ([], overrides(tracing={"otlp": {"compression": "gzip"}}), "set OTEL_EXPORTER_OTLP_COMPRESSION"),
        ([], overrides(tracing={"exporter_type": "otlp", "otlp": {"protocol": "grpc"}}), "'.[otlp]'"),
    ],
    ids=str,
)
def test_what_has_another_setting_here_is_refused_at_the_start(
    run: Path, tmp_path: Path, words: list[str], environment: dict[str, str], reason: str
) -> None:
    given = {"TWINLENS_MODEL": str(run / "model.onnx"), "BENTOML_HOME": str(tmp_path)} | environment
    command = [sys.executable, "-m", "bentoml", "serve", "--host", "127.0.0.1", "--port", "0", *words]
    done = subprocess.run(
        command, cwd=ROOT, env=os.environ | given, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 1
    assert reason in done.stderr


def below(spans: list[Span], parent: Span) -> list[Span]:
    return sorted((span for span in spans if span.parent == parent.id), key=lambda span: (span.start, span.end))


def test_a_request_is_a_span_with_its_stages_below(configured: Configured, png: Callable[..., bytes]) -> None:
    image, spans = png(picture("blue")), configured.collector.spans
    spans.clear()
    sent = {"traceparent": f"00-{TRACE}-{PARENT}-01", "X-Request-ID": "this-one"}
    configured.post("/predict", files={"image": image}, headers=sent)
    configured.post("/predict_batch", files=[("images", image), ("images", b"no picture")])
    not_sampled = {"traceparent": f"00-{'a' * 32}-{PARENT}-00"}
    configured.post("/predict", files={"image": image}, headers=not_sampled)
    for path in ("/docs.json", "/livez", "/a-path-of-nobody"):
        httpx.get(f"{configured.address}{path}")
    wait_until(lambda: any(span.name == "GET other" for span in spans))
    roots = {span.name: span for span in spans if span.parent in ("", PARENT)}
    assert roots.keys() == {"POST /predict", "POST /predict_batch", "GET other"}, "no probe, and nothing excluded"
    assert {span.service for span in spans} == {"twinlens"}
    assert "a" * 32 not in {span.trace for span in spans}, "its caller does not sample it"

    predict = roots["POST /predict"]
    assert (predict.trace, predict.parent) == (TRACE, PARENT)
    assert predict.attributes == {
        "http.request.method": "POST",
        "http.route": "/predict",
        "http.response.status_code": 200,
        "twinlens.request_id": "this-one",
    }
    stages = below(spans, predict)
    assert [span.name for span in stages] == ["decode", "queue", "infer"]
    assert {span.trace for span in stages} == {TRACE}
    slack = 1_000_000  # nanoseconds, of two clocks
    assert predict.start - slack < stages[0].start
    assert stages[-1].end < predict.end + slack
    assert all(span.start <= span.end <= after.start + slack for span, after in pairwise(stages))

    batch = below(spans, roots["POST /predict_batch"])
    assert sorted(span.name for span in batch) == ["decode", "decode", "infer", "queue"], "one is no picture"
    assert roots["GET other"].attributes["http.response.status_code"] == 401
    assert not any(span.failed for span in spans)


@pytest.mark.slow
def test_the_last_spans_are_sent_at_the_end(run: Path, tmp_path: Path, png: Callable[..., bytes]) -> None:
    pytest.importorskip("opentelemetry.exporter.otlp.proto.http")
    with collector() as spans:
        otlp = {"protocol": "http", "endpoint": spans.address}
        config = overrides(tracing={"exporter_type": "otlp", "sample_rate": 1.0, "otlp": otlp})
        with serving(run / "model.onnx", BENTOML_HOME=str(tmp_path), **config) as address:
            httpx.post(f"{address}/predict", files={"image": png(picture("blue"))})
        assert {span.name for span in spans.spans} == {"POST /predict", "decode", "queue", "infer"}


@pytest.mark.parametrize(
    ("address", "expected"),
    [("127.0.0.1", "127.0.0.1"), ("127.0.0.2", "127.0.0.2"), ("0.0.0.0", None)],
)
def test_a_worker_knows_whether_only_its_machine_can_reach_it(
    monkeypatch: pytest.MonkeyPatch, address: str, expected: str | None
) -> None:
    with socket.create_server((address, 0)) as listening:
        monkeypatch.setattr("sys.argv", ["worker", "--fd", str(listening.fileno()), "--backlog", "1"])
        assert bento_config.loopback_address() == expected
        assert listening.getsockname(), "it is still open"
    monkeypatch.setattr("sys.argv", ["pytest"])
    assert bento_config.loopback_address() is None
