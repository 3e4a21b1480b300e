"""What the manifests start, started: their pod templates with security context, mounts and probes as they are."""

import shutil
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.containers.cluster import K8S, Pod, manifest, pod
from tests.containers.images import SERVE, TRAIN, digit
from tests.containers.podman import inspect, podman

WAIT_S = 400
GATEWAY = "10.88.0.1"
"""The host's address in podman's network."""
NAMES_KNOWN_AFTER_S = 75
"""Longer than torchrun waits by default for the store: 60 s."""


@pytest.fixture
def claims() -> Iterator[dict[str, str]]:
    """Volumes that stand for the claims `data` and `runs`."""
    names = {"data": "twinlens-test-data", "runs": "twinlens-test-runs"}
    for name in names.values():
        podman("volume", "rm", "--force", name, check=False)
        podman("volume", "create", name)
    yield names
    for name in names.values():
        podman("volume", "rm", "--force", name, check=False)


def folder_of(volume: str) -> Path:
    return Path(podman("volume", "inspect", "--format={{.Mountpoint}}", volume).strip())


def publish(run: Path, volume: Path, name: str) -> None:
    """Put a run into a volume and point `latest` to it, as the trainer does."""
    shutil.copytree(run, volume / name, symlinks=True)
    link = volume / ".latest"
    link.symlink_to(name)
    link.replace(volume / "latest")


def until(holds: Callable[[], bool], watched: Pod) -> None:
    end = time.monotonic() + WAIT_S
    while not holds():
        assert time.monotonic() < end, watched.logs
        time.sleep(0.2)


def status(address: str) -> int:
    try:
        return httpx.get(address, timeout=3).status_code
    except httpx.TransportError:
        return 0


class Load:
    """Clients that post one image after the other, each on a connection of its own, and count what they get."""

    def __init__(self, address: str, clients: int = 4) -> None:
        self.statuses: Counter[int | str] = Counter()
        self.versions: Counter[str] = Counter()
        self._address = address
        self._ends = threading.Event()
        self._threads = [threading.Thread(target=self._post) for _ in range(clients)]

    def __enter__(self) -> "Load":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ends.set()
        for thread in self._threads:
            thread.join()

    def _post(self) -> None:
        body, headers = digit(0), {"Content-Type": "image/png", "Connection": "close"}
        while not self._ends.is_set():
            try:
                answer = httpx.post(f"{self._address}/predict", content=body, headers=headers, timeout=20)
            except httpx.TransportError as error:
                self.statuses[type(error).__name__] += 1
            else:
                self.statuses[answer.status_code] += 1
                if answer.status_code == 200:
                    self.versions[answer.json()["model_version"]] += 1


class Uploads:
    """Requests of which the service has only half while the block runs, and the rest at its end."""

    COUNT = 4

    def __init__(self, address: str) -> None:
        self.statuses: Counter[int] = Counter()
        self._address = address
        self._begun = threading.Barrier(self.COUNT + 1)
        self._continues = threading.Event()
        self._pool = ThreadPoolExecutor(self.COUNT)

    def __enter__(self) -> "Uploads":
        self._answers = [self._pool.submit(self._post) for _ in range(self.COUNT)]
        self._begun.wait(WAIT_S)
        return self

    def __exit__(self, *_: object) -> None:
        self._continues.set()
        self.statuses.update(answer.result().status_code for answer in self._answers)
        self._pool.shutdown()

    def _post(self) -> httpx.Response:
        return httpx.post(f"{self._address}/predict", content=self._halves(), headers={"Content-Type": "image/png"})

    def _halves(self) -> Iterator[bytes]:
        body = digit(0)
        yield body[: len(body) // 2]
        self._begun.wait(WAIT_S)
        self._continues.wait(WAIT_S)
        yield body[len(body) // 2 :]


def test_the_service_waits_for_a_model_takes_the_next_one_and_ends_without_loss(
    runs: Path,
    claims: dict[str, str],
    tmp_path: Path,
) -> None:
    volume = folder_of(claims["runs"])
    with pod("twinlens-serve", manifest("Deployment", "serve"), SERVE, claims, tmp_path) as service:
        address = f"http://{service.address}:3000"
        until(lambda: status(f"{address}/livez") == 200, service)
        assert status(f"{address}/readyz") == 503
        publish(runs / "latest", volume, "one")
        until(lambda: status(f"{address}/readyz") == 200, service)

        answer = httpx.post(f"{address}/predict", files={"image": digit(0)}, timeout=20)
        assert answer.json()["label"] == "0"
        metrics = {family.name for family in text_string_to_metric_families(httpx.get(f"{address}/metrics").text)}
        assert {"twinlens_predictions", "twinlens_model_info", "twinlens_requests"} <= metrics

        second = tmp_path / "second"
        second.mkdir()
        second.chmod(0o777)
        podman("run", "--rm", "--network=none", f"--volume={second}:/runs", TRAIN, "--model", "mlp", "--epochs", "1")
        with Load(address) as load:
            until(lambda: load.statuses[200] > 20, service)
            publish(second / "latest", volume, "two")
            until(lambda: len(load.versions) == 2, service)
        assert set(load.statuses) == {200}, "the swap cost an answer"
        print(f"{load.statuses[200]} answers from {len(load.versions)} models")

        # By now, in a cluster, nothing new is sent here: preStop has waited for that. What has begun is answered.
        with Uploads(address) as uploads:
            service.signal("TERM")
        assert uploads.statuses == Counter({200: Uploads.COUNT})
        until(lambda: service.exit_code is not None, service)
        assert service.exit_code == 0


def test_a_training_job_that_is_killed_continues(
    images: None,
    claims: dict[str, str],
    tmp_path: Path,
) -> None:
    job = manifest("Job", "train")
    checkpoint = folder_of(claims["runs"]) / "train" / "checkpoints" / "last.pt"
    with pod("twinlens-train", job, TRAIN, claims, tmp_path) as trainer:
        until(lambda: checkpoint.exists() or trainer.exit_code is not None, trainer)
        assert trainer.exit_code is None, trainer.logs
        trainer.signal("KILL")
        until(lambda: trainer.exit_code == 137, trainer)
    with pod("twinlens-train", job, TRAIN, claims, tmp_path) as trainer:
        until(lambda: "resume runs/train: epoch" in trainer.logs, trainer)
        until(lambda: "  3/30" in trainer.logs or trainer.exit_code is not None, trainer)
        trainer.signal("TERM")
        until(lambda: trainer.exit_code is not None, trainer)
        assert trainer.exit_code == 143, trainer.logs


def test_the_shell_takes_images_and_moves_latest(runs: Path, claims: dict[str, str], tmp_path: Path) -> None:
    """As `kubectl cp` does, which runs tar in the container, and `kubectl exec`."""
    volume = folder_of(claims["runs"])
    publish(runs / "latest", volume, "one")
    (volume / "latest").unlink()
    shell = {"spec": {"template": manifest("Pod", "shell", K8S / "shell")}}
    with pod("twinlens-shell", shell, TRAIN, claims, tmp_path) as waiting:
        made = "mkdir -p /tmp/photos/eight && echo picture > /tmp/photos/eight/1.png"
        podman("exec", waiting.container, "sh", "-c", f"{made} && tar -C /tmp -cf - photos | tar -C /data -xmf -")
        assert (folder_of(claims["data"]) / "photos" / "eight" / "1.png").read_text() == "picture\n"
        command = ["python", "-m", "training", "promote", "runs/one", "--force", "--reason", "the camera changed"]
        podman("exec", waiting.container, *command)
    assert (volume / "latest").readlink() == Path("one")


@pytest.mark.skipif(shutil.which("dnsmasq") is None, reason="dnsmasq is not installed")
def test_two_nodes_train_together_once_the_name_server_knows_them(images: None, tmp_path: Path) -> None:
    """The Job's own command in two containers, whose names are known some time after they have started."""
    job = manifest("Job", "train-together", K8S / "distributed")
    [container] = job["spec"]["template"]["spec"]["containers"]
    [script] = container["args"]
    script = script.replace("--device=cuda", "--device=cpu").replace("--epochs=30", "--epochs=2 --model=mlp")
    shared = tmp_path / "runs"
    shared.mkdir()
    shared.chmod(0o777)
    addresses = {f"train-together-{i}": f"10.88.200.{i + 10}" for i in range(job["spec"]["completions"])}
    domain = f"{job['metadata']['namespace']}.svc.cluster.local"
    names = list(addresses)
    try:
        for index, (name, ip) in enumerate(addresses.items()):
            variables = [f"--env=JOB_COMPLETION_INDEX={index}", f"--env=POD_IP={ip}"]
            network = [f"--hostname={name}", f"--ip={ip}", f"--dns={GATEWAY}", f"--dns-search={domain}"]
            options = [f"--name={name}", "--entrypoint=sh", f"--volume={shared}:/runs", *network, *variables]
            podman("run", "--detach", *options, TRAIN, "-c", script)
        time.sleep(NAMES_KNOWN_AFTER_S)
        assert all(inspect("container", name)["State"]["Running"] for name in names), "no pod failed meanwhile"
        with name_server({f"{name}.train-together.{domain}": ip for name, ip in addresses.items()}):
            codes = [podman("wait", name, timeout=600).strip() for name in names]
        logs = [podman("logs", name, merge=True) for name in names]
    finally:
        podman("rm", "--force", "--time=1", *names, check=False)
    assert codes == ["0"] * len(names), "\n".join(logs)
    assert (shared / "latest" / "model.onnx").exists()
    assert ["Parity held" in text for text in logs] == [True, False], "one speaks for both"


@contextmanager
def name_server(records: dict[str, str]) -> Iterator[None]:
    """A dnsmasq that knows these names, where the containers ask."""
    options = ["--keep-in-foreground", "--no-resolv", "--no-hosts", "--bind-interfaces", f"--listen-address={GATEWAY}"]
    known = [f"--host-record={name},{address}" for name, address in records.items()]
    server = subprocess.Popen(["dnsmasq", "--conf-file=/dev/null", "--pid-file", *options, *known])
    try:
        yield
    finally:
        server.terminate()
        server.wait(10)


def test_probes_are_answered_inside(runs: Path, claims: dict[str, str], tmp_path: Path) -> None:
    publish(runs / "latest", folder_of(claims["runs"]), "one")
    deployment = manifest("Deployment", "serve")
    with pod("twinlens-probed", deployment, SERVE, claims, tmp_path) as service:
        until(lambda: status(f"http://{service.address}:3000/readyz") == 200, service)
        [container] = deployment["spec"]["template"]["spec"]["containers"]
        for name in ("startupProbe", "livenessProbe", "readinessProbe"):
            path = container[name]["httpGet"]["path"]
            assert status(f"http://{service.address}:{container['ports'][0]['containerPort']}{path}") == 200
        assert_cannot_write(service)


def assert_cannot_write(service: Pod) -> None:
    """Its root is read-only, and so is what it serves."""
    for path in ("/opt/venv/x", "/runs/x"):
        code = f"open({path!r}, 'w')"
        printed = podman("exec", service.container, "python", "-c", code, check=False, merge=True)
        assert "Read-only file system" in printed, printed
