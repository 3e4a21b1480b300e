"""compose.yaml runs what the manifests run, as hardened, and every option, setting, argument and path in it exists."""

import re
import shutil
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
import tyro
import yaml

from serving.settings import PREFIX, Settings
from tests.support.paths import ROOT
from training.options.config import TrainConfig

OWN = ("train", "serve")
VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]


def read(name: str) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((ROOT / name).read_text())
    return found


COMPOSE = read("compose.yaml")
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
ON_GPU: dict[str, dict[str, Any]] = read("compose.gpu.yaml")["services"]


def manifest(kind: str, name: str) -> dict[str, Any]:
    """The container of a manifest's pods."""
    [found] = [
        one["spec"]["template"]["spec"]["containers"][0]
        for one in yaml.safe_load_all((ROOT / "k8s" / f"{name}.yaml").read_text())
        if one["kind"] == kind
    ]
    assert isinstance(found, dict)
    return found


def mounts(service: dict[str, Any]) -> list[tuple[str, str, set[str]]]:
    """Source, target and options of a service's volumes."""
    parts = [volume.split(":") for volume in service["volumes"]]
    return [(source, target, set(",".join(options).split(","))) for source, target, *options in parts]


def test_it_runs_what_the_manifests_run() -> None:
    train, serve = manifest("Job", "train"), manifest("Deployment", "serve")
    assert SERVICES["train"]["image"] == train["image"]
    assert SERVICES["serve"]["image"] == serve["image"]
    assert SERVICES["train"]["command"] == train["args"]
    assert SERVICES["serve"]["environment"] == {one["name"]: one["value"] for one in serve["env"]}
    [port] = SERVICES["serve"]["ports"]
    assert port.endswith(f":{serve['ports'][0]['containerPort']}")
    for name in OWN:
        service = SERVICES[name]
        assert service["read_only"]
        assert service["tmpfs"] == ["/tmp"]
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]
    assert [mount[:2] for mount in mounts(SERVICES["train"])] == [("runs", "/runs")]
    assert mounts(SERVICES["serve"]) == [("runs", "/runs", {"ro"})]
    assert "train" in SERVICES["serve"]["depends_on"], "or the volume would be root's, and training could not write"


def test_on_a_gpu_both_have_one_and_require_it() -> None:
    assert ON_GPU.keys() == set(OWN)
    for name, service in ON_GPU.items():
        assert service["image"] == f"localhost/twinlens/{name}:{VERSION}"
        [device] = service["deploy"]["resources"]["reservations"]["devices"]
        assert device == {"driver": "nvidia", "count": 1, "capabilities": ["gpu"]}
        assert service["build"]["args"].keys() == SERVICES[name]["build"]["args"].keys(), "each one is overridden"
        assert service["build"]["args"]["NVIDIA_VISIBLE_DEVICES"] == "all"
    assert ON_GPU["serve"]["environment"] == {"TWINLENS_REQUIRE_GPU": "1"}
    assert ON_GPU["train"]["command"] == [*SERVICES["train"]["command"], "--device=cuda"]


@pytest.mark.parametrize("services", [SERVICES, ON_GPU], ids=["cpu", "gpu"])
def test_options_settings_and_arguments_exist(services: dict[str, dict[str, Any]]) -> None:
    tyro.cli(TrainConfig, args=services["train"]["command"])
    known = {f"{PREFIX}{field.upper()}" for field in Settings.model_fields}
    assert services["serve"]["environment"].keys() <= known
    for name in OWN:
        arguments = re.findall(r"^ARG (\w+)=", (ROOT / f"Dockerfile.{name}").read_text(), re.MULTILINE)
        assert services[name]["build"]["args"].keys() <= set(arguments)
        assert SERVICES[name]["build"]["dockerfile"] == f"Dockerfile.{name}"


def test_every_file_that_is_mounted_exists_and_is_found() -> None:
    targets: dict[str, str] = {}
    for service in SERVICES.values():
        for source, target, options in mounts(service):
            if source in COMPOSE["volumes"]:
                continue
            assert (ROOT / source).is_file()
            assert "ro" in options
            targets[source] = target
    assert f"--config.file={targets['./compose/prometheus.yaml']}" in SERVICES["prometheus"]["command"]
    [provider] = read("compose/grafana-dashboards.yaml")["providers"]
    dashboard = Path(targets["./k8s/monitoring/dashboard.json"])
    assert dashboard.parent == Path(provider["options"]["path"])
    assert SERVICES["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"] == str(dashboard)
    assert {path.name for path in (ROOT / "compose").iterdir()} == {
        Path(source).name for source in targets if source.startswith("./compose/")
    }


def test_each_reaches_the_next() -> None:
    [target] = read("compose/prometheus.yaml")["scrape_configs"][0]["static_configs"][0]["targets"]
    assert target == "serve:3000"
    [source] = read("compose/grafana-datasource.yaml")["datasources"]
    assert source["url"] == "http://prometheus:9090"
    assert source["isDefault"]
    assert {"serve", "prometheus"} <= SERVICES.keys()


def test_nobody_else_reaches_them_and_their_versions_are_fixed() -> None:
    ports = [port for service in SERVICES.values() for port in service.get("ports", [])]
    assert all(port.startswith("127.0.0.1:") for port in ports)
    assert len({port.split(":")[1] for port in ports}) == len(ports) == 3
    for name in SERVICES.keys() - set(OWN):
        assert re.search(r":v?\d+\.\d+\.\d+$", SERVICES[name]["image"])


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")
def test_prometheus_takes_its_configuration() -> None:
    command = ["promtool", "check", "config", str(ROOT / "compose" / "prometheus.yaml")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
