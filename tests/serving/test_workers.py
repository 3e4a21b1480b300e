"""A worker is killed, in a container: it is replaced, or the container ends; the service never continues with fewer."""

import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import numpy as np
import psutil
import pytest

from serving.contract.gpu import gpus
from serving.inference.predictor import FAILURES
from tests.support import cuda
from tests.support.forged_models import failing, rewritten
from tests.support.processes import wait_until
from tests.support.replies import metric
from tests.support.server import started

pytestmark = pytest.mark.slow
RESPAWN_S = 30
"""BentoML's supervisor looks every ten seconds."""


def workers(server: "subprocess.Popen[bytes]", address: str) -> set[psutil.Process]:
    """The supervisor's children that answer: they know the port's socket from it."""
    port = urlsplit(address).port
    answering = set()
    for child in psutil.Process(server.pid).children(recursive=True):
        with suppress(psutil.NoSuchProcess):  # it has ended since it was listed
            if any(connection.laddr and connection.laddr.port == port for connection in child.net_connections()):
                answering.add(child)
    return answering


def test_the_only_worker_takes_the_container_with_it(run: Path, tmp_path: Path) -> None:
    with started(run / "model.onnx", tmp_path / "home", tmp_path / "log", BENTOML_CONTAINERIZED="1") as (server, url):
        [worker] = workers(server, url)
        worker.kill()
        assert server.wait(timeout=RESPAWN_S) != 0


def test_a_worker_for_each_gpu_is_one_without_any(run: Path, tmp_path: Path) -> None:
    with started(run / "model.onnx", tmp_path / "home", tmp_path / "log", TWINLENS_WORKERS="gpus") as (server, url):
        assert len(workers(server, url)) == max(1, len(gpus()))


NO_CUDA = "onnxruntime could not load CUDA; its log says which library is missing"


@pytest.mark.skipif(bool(gpus()), reason="there is a GPU")
def test_two_gpus_have_a_worker_each(run: Path, tmp_path: Path) -> None:
    """As a driver shows them; without CUDA's libraries each says so and serves on the CPU."""
    driver = {"LD_LIBRARY_PATH": str(cuda.library(tmp_path, cards=2)), "TWINLENS_WORKERS": "gpus"}
    said = [f"the graph runs on the CPU, not on GPU {number}: {NO_CUDA}" for number in (0, 1)]
    log = tmp_path / "log"
    with started(run / "model.onnx", tmp_path / "home", log, **driver) as (server, url):
        wait_until(lambda: all(line in log.read_text() for line in said))  # the first one ready does not wait
        assert len(workers(server, url)) == 2
        assert httpx.get(f"{url}/readyz").status_code == 200


@pytest.mark.skipif(bool(gpus()), reason="there is a GPU")
def test_a_visible_gpu_is_required_by_auto(run: Path, tmp_path: Path) -> None:
    driver = {"LD_LIBRARY_PATH": str(cuda.library(tmp_path, cards=1)), "TWINLENS_REQUIRE_GPU": "auto"}
    with (
        pytest.raises(AssertionError, match=f"(?s)the server ended .*a GPU is required, but {NO_CUDA}"),
        started(run / "model.onnx", tmp_path / "home", tmp_path / "log", **driver),
    ):
        pass


def test_one_of_several_is_replaced_and_the_others_answer_meanwhile(
    run: Path, tmp_path: Path, png: Callable[..., bytes]
) -> None:
    image = {"image": png(np.full((40, 40, 3), 90, np.uint8))}
    environment = {"BENTOML_CONTAINERIZED": "1", "TWINLENS_WORKERS": "2"}
    with started(run / "model.onnx", tmp_path / "home", tmp_path / "log", **environment) as (server, url):
        until = time.monotonic() + RESPAWN_S
        while len(before := workers(server, url)) < 2 and time.monotonic() < until:
            time.sleep(0.1)
        assert len(before) == 2
        killed = before.pop()
        killed.kill()
        until = time.monotonic() + RESPAWN_S
        while len(workers(server, url) - {killed}) < 2:
            assert time.monotonic() < until, "nobody took the dead worker's place"
            assert httpx.post(f"{url}/predict", files=image).status_code == 200
            time.sleep(0.1)
        assert server.poll() is None


def test_one_of_several_that_has_lost_its_model_is_replaced(
    run: Path, tmp_path: Path, png: Callable[..., bytes]
) -> None:
    gray, white = ({"image": png(np.full((40, 40, 3), value, np.uint8))} for value in (100, 255))
    model = rewritten(run / "model.onnx", tmp_path / "model.onnx", failing)
    log, environment = tmp_path / "log", {"BENTOML_CONTAINERIZED": "1", "TWINLENS_WORKERS": "2"}
    with started(model, tmp_path / "home", log, **environment) as (server, url):
        wait_until(lambda: len(workers(server, url)) == 2)
        before = workers(server, url)
        # One of the two fails FAILURES times, the other one less often.
        replies = [httpx.post(f"{url}/predict", files=white).status_code for _ in range(2 * FAILURES - 1)]
        wait_until(lambda: len(before & workers(server, url)) == 1, RESPAWN_S)
        failed = replies.count(500)
        assert failed >= FAILURES
        assert metric(httpx.get(f"{url}/metrics").text, "twinlens_requests_total", status="500") == failed, "kept"
        until = time.monotonic() + RESPAWN_S
        while len(workers(server, url)) < 2:
            assert time.monotonic() < until, "nobody took the lost worker's place"
            assert httpx.post(f"{url}/predict", files=gray).status_code == 200
            time.sleep(0.1)
        assert len(before & workers(server, url)) == 1
        assert server.poll() is None
    assert log.read_text().count("this worker ends, and another one takes its place") == 1
