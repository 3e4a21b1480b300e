"""Alerts that fire when they should and only then; and every query of rules, dashboard and autoscaler finds data.

Debian's package `prometheus` brings both promtool and the Prometheus that scrapes the service here.
"""

import json
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import yaml
from prometheus_client import CollectorRegistry

from serving.api.routes import RouteKind, routes_of
from serving.metrics import Metrics
from serving.settings import Settings
from tests.support.paths import ROOT
from tests.support.server import free_port

MONITORING = ROOT / "k8s" / "monitoring"
ALERTS = ROOT / "tests" / "k8s" / "alerts.yaml"
GROUPS: dict[str, Any] = yaml.safe_load((MONITORING / "rules.yaml").read_text())["spec"]
RULES = [rule for group in GROUPS["groups"] for rule in group["rules"]]
DASHBOARD = json.loads((MONITORING / "dashboard.json").read_text())
PANELS = {panel["title"]: [target["expr"] for target in panel["targets"]] for panel in DASHBOARD["panels"]}
KEDA = yaml.safe_load((MONITORING / "keda.yaml").read_text())["spec"]["triggers"][0]["metadata"]["query"]
SUFFIXES = re.compile(r"_(total|bucket|sum|count)$")
# Absent until enough images were seen, and without a model that has operating points.
LATER = ("twinlens_drift_psi", "twinlens_decisions_total")
WAIT_S = 60

needs_promtool = pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")
needs_prometheus = pytest.mark.skipif(shutil.which("prometheus") is None, reason="prometheus is not installed")


@pytest.fixture
def rules(tmp_path: Path) -> Path:
    """The rules as Prometheus reads them, with their tests beside them."""
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump(GROUPS))
    shutil.copy(ALERTS, tmp_path)
    return tmp_path / "rules.yaml"


def promtool(*arguments: str | Path, given: str = "") -> str:
    done = subprocess.run(["promtool", *arguments], input=given, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@needs_promtool
def test_alerts_fire_when_they_should_and_only_then(rules: Path) -> None:
    promtool("check", "rules", rules)
    assert "SUCCESS" in promtool("test", "rules", rules.with_name(ALERTS.name))


def test_every_alert_has_a_case_of_each_kind_and_a_line_for_the_operator() -> None:
    cases: dict[str, set[bool]] = {rule["alert"]: set() for rule in RULES}
    for case in yaml.safe_load(ALERTS.read_text())["tests"]:
        for expected in case["alert_rule_test"]:
            cases[expected["alertname"]].add(bool(expected["exp_alerts"]))
    assert {name for name, kinds in cases.items() if kinds != {True, False}} == set()
    assert {rule["labels"]["severity"] for rule in RULES} == {"critical", "warning"}


def test_every_metric_that_is_asked_for_is_one_of_ours() -> None:
    registry = CollectorRegistry()
    Metrics(registry)
    ours = {family.name for family in registry.collect()}
    queries = [rule["expr"] for rule in RULES] + [query for panel in PANELS.values() for query in panel] + [KEDA]
    asked = {SUFFIXES.sub("", name) for query in queries for name in re.findall(r"twinlens_\w+", query)}
    assert asked - ours == set()
    assert asked >= {"twinlens_requests", "twinlens_request_seconds", "twinlens_model_info", "twinlens_drift_psi"}


def test_alerts_and_panels_leave_out_all_probes_and_scrapes() -> None:
    """They come at all times, and probes fail while a replica waits for its model."""
    queries = " ".join([rule["expr"] for rule in RULES] + [query for panel in PANELS.values() for query in panel])
    selectors = re.findall(r"twinlens_requests_total(\{[^}]*\})?", queries)
    assert len(selectors) == 8
    always = {route.name for route in routes_of(Settings()) if route.kind in (RouteKind.PROBE, RouteKind.METRICS)}
    for selector in selectors:
        left_out = set(re.findall(r'route!~"([^"]*)"', selector)[0].split("|"))
        assert left_out in (always, always | {"/explain", "/similar"}), selector


@pytest.fixture
def prometheus(server: str, rules: Path, tmp_path: Path) -> Iterator[str]:
    """A real Prometheus that scrapes the service every second, as the ServiceMonitor names it."""
    job = {
        "job_name": "serve",
        "static_configs": [{"targets": [server.removeprefix("http://")], "labels": {"namespace": "twinlens"}}],
    }
    config = {"global": {"scrape_interval": "1s", "evaluation_interval": "1s"}, "rule_files": [str(rules)]}
    (tmp_path / "prometheus.yaml").write_text(yaml.safe_dump(config | {"scrape_configs": [job]}))
    address = f"127.0.0.1:{free_port()}"
    command = ["prometheus", f"--config.file={tmp_path}/prometheus.yaml", f"--storage.tsdb.path={tmp_path}/tsdb"]
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen([*command, f"--web.listen-address={address}"], stdout=log, stderr=log)
        try:
            wait(lambda: answers(f"http://{address}/-/ready"), "Prometheus is not ready")
            yield f"http://{address}"
        finally:
            process.terminate()
            process.wait()


def wait(holds: Callable[[], bool], why: str) -> None:
    until = time.monotonic() + WAIT_S
    while not holds():
        assert time.monotonic() < until, why
        time.sleep(0.2)


def answers(address: str) -> bool:
    try:
        return httpx.get(address).status_code == 200
    except httpx.TransportError:
        return False


def found(prometheus: str, query: str) -> list[Any]:
    for name, value in (("$instance", ".*"), ("$__rate_interval", "10s")):
        query = query.replace(name, value)
    answer = httpx.get(f"{prometheus}/api/v1/query", params={"query": query}).json()
    assert answer["status"] == "success", (query, answer)
    results: list[Any] = answer["data"]["result"]
    return results


@pytest.mark.slow
@needs_prometheus
def test_a_prometheus_scrapes_the_service_and_every_panel_has_data(
    server: str, prometheus: str, png: Callable[..., bytes]
) -> None:
    image = png(np.full((40, 40, 3), (200, 40, 40), np.uint8))
    kinds = [(image, 200), (b"no image", 415)]

    def ask() -> None:
        for body, status in kinds:
            answer = httpx.post(f"{server}/predict", content=body, headers={"Content-Type": "image/png"})
            assert answer.status_code == status

    def every_panel_has_data() -> bool:
        ask()
        queries = [query for panel in PANELS.values() for query in panel if not any(name in query for name in LATER)]
        return all(found(prometheus, query) for query in [*queries, KEDA])

    wait(every_panel_has_data, "a panel has no data")
    assert found(prometheus, 'up{job="serve"} == 1')
    rated = httpx.get(f"{prometheus}/api/v1/rules").json()["data"]["groups"][0]["rules"]
    assert {rule["health"] for rule in rated} == {"ok"}
    assert {rule["name"] for rule in rated if rule["state"] == "firing"} == set()


@needs_promtool
def test_the_metrics_are_as_prometheus_wants_them(server: str) -> None:
    text = httpx.get(f"{server}/metrics").text
    assert "twinlens_model_info" in text
    promtool("check", "metrics", given=text)
