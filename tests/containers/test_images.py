"""The two images, built from the Dockerfiles and run as a user and as the manifests run them.

`make test-containers`; needs root, podman and debootstrap, and about ten minutes the first time.
"""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

from tests.containers.images import SERVE, SOMEBODY, TRAIN, VERSION, digit
from tests.containers.podman import build, inspect, podman

FORBIDDEN = ("torch", "scipy", "sklearn", "albumentations", "tensorboard", "onnx", "training")
SERVE_BYTES_AT_MOST = 1.1e9
READY_S = 90


def wait_for(address: str, status: int = 200) -> None:
    until = time.monotonic() + READY_S
    while time.monotonic() < until:
        try:
            if httpx.get(address, timeout=2).status_code == status:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.2)
    raise AssertionError(f"{address} did not answer {status} within {READY_S} s")


def test_a_run_is_that_of_the_user_of_the_container(runs: Path) -> None:
    model = runs / "latest" / "model.onnx"
    assert model.stat().st_uid == SOMEBODY
    report = json.loads((runs / "latest" / "report" / "report.json").read_text())
    assert report["scores"]["test"]["accuracy"] > 0.5
    assert b"0123456789" in model.read_bytes(), "the card says what the image was built from"


def test_with_nothing_mounted_and_one_core_everything_is_left_under_runs(images: None, tmp_path: Path) -> None:
    name = "twinlens-nothing-mounted"
    try:
        printed = podman("run", "--cpus=1", "--name", name, "--network=none", TRAIN, "--epochs", "1", "--name", "first")
        assert "1 threads" in printed, "the container's cores count, not the machine's"
        podman("cp", f"{name}:/runs/first/model.onnx", tmp_path)
        assert (tmp_path / "model.onnx").stat().st_size > 0
    finally:
        podman("rm", "--force", "--volumes", name, check=False)


def test_the_images_hold_what_they_need_and_no_more(images: None) -> None:
    code = f"import importlib.util as u; print([name for name in {FORBIDDEN} if u.find_spec(name)])"
    assert podman("run", "--rm", "--entrypoint=python", SERVE, "-c", code).strip() == "[]"
    size = inspect("image", SERVE)["Size"]
    print(f"serve: {size / 1e9:.2f} GB; train: {inspect('image', TRAIN)['Size'] / 1e9:.2f} GB")
    assert size <= SERVE_BYTES_AT_MOST
    for image in (TRAIN, SERVE):
        found = inspect("image", image)
        assert found["Config"]["User"] == "10001:10001"
        assert found["Config"]["Labels"]["org.opencontainers.image.version"] == VERSION
        assert found["Config"]["Entrypoint"][0] == "python"
    assert "livez" in str(inspect("image", SERVE)["Healthcheck"])


def test_sagemaker_trains_and_serves(images: None, tmp_path: Path) -> None:
    """On folders as SageMaker makes them, root's and closed to others, with the image that is built for it."""
    for_sagemaker = f"{TRAIN}-sagemaker"
    build("train", for_sagemaker, VERSION=VERSION, REVISION="0123456789", RUN_AS="0:0")
    ml = tmp_path / "ml"
    (ml / "input" / "config").mkdir(parents=True)
    (ml / "input" / "config" / "hyperparameters.json").write_text('{"epochs": "1", "model": "mlp"}')
    for path in (ml, *ml.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)
    command = ["run", "--rm", "--cap-drop=ALL", "--network=none", f"--volume={ml}:/opt/ml"]
    refused = podman(*command, TRAIN, "train", check=False, merge=True)
    assert "error: [Errno 13] Permission denied: '/opt/ml/checkpoints'" in refused, "what RUN_AS is for"
    assert "Traceback" not in refused
    assert not (ml / "model").exists()
    podman(*command, for_sagemaker, "train")
    assert (ml / "model" / "model.onnx").exists()
    with container(SERVE, f"--volume={ml}:/opt/ml:ro", command=["serve"], port=8080) as address:
        wait_for(f"{address}/ping")
        answer = httpx.post(f"{address}/invocations", content=digit(0), headers={"Content-Type": "image/png"})
        assert answer.status_code == 200, answer.text


@contextmanager
def container(image: str, *options: str, command: list[str], port: int) -> Iterator[str]:
    """A container in the background; gives the address at which the host reaches it."""
    name = podman("run", "--detach", *options, image, *command).strip()
    try:
        yield f"http://{address_of(name)}:{port}"
    finally:
        # A second would not do on a busy machine, and podman fails where a container ends while it is killed.
        podman("rm", "--force", "--time=20", "--volumes", name)


def address_of(name: str) -> str:
    settings = inspect("container", name)["NetworkSettings"]
    found = settings["IPAddress"] or next(iter(settings["Networks"].values()))["IPAddress"]
    assert isinstance(found, str)
    return found
