"""One tiny model trained for real, and one real server process that serves it, for all tests."""

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

os.environ["BENTOML_DO_NOT_TRACK"] = "True"
# Two tests run side by side: threads that wait for one another on the same two cores would triple the time.
os.environ["OMP_NUM_THREADS"] = "1"

import cv2
import httpx
import numpy as np
import pytest

from training.config import TrainConfig
from training.train import train

ROOT = Path(__file__).parent.parent
SHARED = ROOT.parent / "shared"
START_S = 60


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Class folders with 3 x 30 pictures: one colour a class, noise, several sizes, JPEG and PNG, awkward names."""
    root = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for label, colour in {"Red rash": (40, 40, 200), "blue": (200, 60, 40), "green leaf": (60, 180, 60)}.items():
        (root / label / "nested folder").mkdir(parents=True)
        for number in range(30):
            height, width = rng.integers(30, 70, size=2)
            noise = rng.integers(-40, 40, size=(height, width, 3))
            picture = np.clip(np.array(colour) + noise, 0, 255).astype(np.uint8)
            name = [f"{number}.png", f"photo {number}.JPG", f"nested folder/{'long ' * 30}{number}.jpeg"][number % 3]
            assert cv2.imwrite(str(root / label / name), picture)
    return root


@pytest.fixture(scope="session")
def run(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run on `photos`."""
    out = tmp_path_factory.mktemp("runs")
    return train(
        TrainConfig(
            data=photos,
            out=out,
            name="tiny",
            val_fraction=0.2,
            model="mlp",
            hidden=(32,),
            image_size=24,
            epochs=4,
            batch_size=16,
        )
    )


def free_port() -> int:
    """A port of the loopback that nobody listens on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@contextmanager
def serving(
    model: Path, *arguments: str, until: str = "readyz", log: Path | None = None, **environment: str
) -> Iterator[str]:
    """`bentoml serve` as a real process on a free port of the loopback; gives its address once `until` answers 200.

    What it prints goes to a file, never to a pipe: one that nobody empties would stop it.
    """
    port = free_port()
    command = [sys.executable, "-m", "bentoml", "serve", *arguments, "--host", "127.0.0.1", "--port", str(port)]
    variables = os.environ | {"TWINLENS_MODEL": str(model)} | environment
    with log.open("w+b") if log else tempfile.TemporaryFile() as output:
        server = subprocess.Popen(command, cwd=ROOT, env=variables, stdout=output, stderr=subprocess.STDOUT)
        address = f"http://127.0.0.1:{port}"
        try:
            _wait_until_ready(server, f"{address}/{until}", output)
            yield address
        finally:
            server.send_signal(signal.SIGTERM)
            server.wait(timeout=START_S)


def _wait_until_ready(server: "subprocess.Popen[bytes]", probe: str, output: IO[bytes]) -> None:
    until = time.monotonic() + START_S
    while time.monotonic() < until:
        if server.poll() is not None:
            output.seek(0)
            raise AssertionError(f"the server ended with {server.returncode}: {output.read().decode()}")
        try:
            if httpx.get(probe, timeout=2).status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.1)
    raise AssertionError(f"not ready within {START_S} s")


@pytest.fixture(scope="session")
def server(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a service of `run`'s model, with limits small enough to be reached by a test."""
    home = tmp_path_factory.mktemp("bentoml")
    with serving(
        run / "model.onnx", BENTOML_HOME=str(home), TWINLENS_MAX_BYTES="200000", TWINLENS_MAX_BATCH="8"
    ) as address:
        yield address


@pytest.fixture(scope="session")
def png() -> Callable[..., bytes]:
    """Encode uint8 pixels, RGB or gray, as PNG."""

    def encode(pixels: np.ndarray) -> bytes:
        done, encoded = cv2.imencode(".png", pixels[..., ::-1] if pixels.ndim == 3 else pixels)
        assert done
        return bytes(encoded)

    return encode


@pytest.fixture(autouse=True)
def _signals() -> Iterator[None]:
    """What a test installs does not outlast it."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)
