"""The service as a real process on a free port of the loopback."""

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import httpx
import psutil

from tests.support.paths import ROOT

START_S = 60


def free_port() -> int:
    """A port of the loopback that nobody listens on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@contextmanager
def serving(
    model: Path | str, *arguments: str, until: str = "readyz", log: Path | None = None, **environment: str
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
            wait_until_ready(server, f"{address}/{until}", output)
            yield address
        finally:
            server.send_signal(signal.SIGTERM)
            server.wait(timeout=START_S)


def wait_until_ready(server: "subprocess.Popen[bytes]", probe: str, output: IO[bytes]) -> None:
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


@contextmanager
def started(
    model: Path | str, home: Path, log: Path, **environment: str
) -> Iterator[tuple["subprocess.Popen[bytes]", str]]:
    """A server that the test ends itself; its address, once it is ready."""
    port = free_port()
    home.mkdir(exist_ok=True)
    variables = {"TWINLENS_MODEL": str(model), "BENTOML_HOME": str(home), "TMPDIR": str(home)} | environment
    command = [sys.executable, "-m", "bentoml", "serve", "--host", "127.0.0.1", "--port", str(port)]
    with (
        log.open("w+b") as output,
        subprocess.Popen(command, cwd=ROOT, env=os.environ | variables, stdout=output, stderr=output) as server,
    ):
        try:
            wait_until_ready(server, f"http://127.0.0.1:{port}/readyz", output)
            yield server, f"http://127.0.0.1:{port}"
        finally:
            if server.poll() is None:
                for each in [*psutil.Process(server.pid).children(recursive=True), server]:
                    each.kill()  # its workers would outlive it
