"""A server as a process on a core of its own: installed, started, watched, put to sleep, stopped."""

import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx
import psutil

from tests.bench.servers import Request, Server

SERVER_CORE, LOAD_CORE = 0, 1
START_S = 120
STOP_S = 20


class Unavailable(RuntimeError):
    """A peer that could not be installed, or does not start, or does not answer as the model does."""


def install(server: Server, folder: Path) -> Path:
    """The bin folder of the server's own environment in `folder`, made unless it is there. Raises Unavailable."""
    if server.requirements is None:
        return Path(sys.executable).parent
    environment = folder / server.folder.name
    stamp = environment / "requirements.txt"
    wanted = server.requirements.read_text()
    if not (stamp.exists() and stamp.read_text() == wanted):
        print(f"installing {server.name}", flush=True)
        shutil.rmtree(environment, ignore_errors=True)
        subprocess.run([sys.executable, "-m", "venv", environment], check=True)
        pip: list[str | Path] = [
            environment / "bin" / "pip",
            "install",
            "--quiet",
            "--requirement",
            server.requirements,
        ]
        done = subprocess.run(pip, capture_output=True, text=True, check=False)
        if done.returncode:
            raise Unavailable(f"{server.name} does not install: {done.stderr.strip().splitlines()[-1]}")
        stamp.write_text(wanted)
    return environment / "bin"


def packages(bin_folder: Path) -> dict[str, str]:
    """The version of every package in an environment."""
    done = subprocess.run([bin_folder / "pip", "freeze"], capture_output=True, text=True, check=True)
    return dict(line.split("==") for line in done.stdout.splitlines() if "==" in line)


class Process:
    """A server that has been started, on SERVER_CORE."""

    def __init__(self, server: Server, bin_folder: Path, model: Path, home: Path) -> None:
        self.server = server
        self.port = _free_port()
        values = {"model": str(model), "port": self.port, "port+1": self.port + 1, "port+2": self.port + 2}
        given = {name: value.format_map(values) for name, value in server.environment.items()}
        path = f"{bin_folder}:{os.environ['PATH']}"
        home.mkdir(parents=True, exist_ok=True)
        self._log = (home / f"{server.name}.log").open("wb")
        self._started = time.perf_counter()
        self._root = psutil.Popen(
            ["taskset", "--cpu-list", str(SERVER_CORE), *(part.format_map(values) for part in server.command)],
            cwd=server.folder,
            env=os.environ | {"PATH": path, "BENTOML_HOME": str(home / server.name)} | given,
            stdout=self._log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        self.facts: dict[str, Any] = {}  # what is found out about it on the way

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def wait_until_ready(self, request: Request) -> float:
        """Seconds from the process's start to its first answer. Raises Unavailable."""
        while True:
            try:
                self.ask(request)
                return time.perf_counter() - self._started
            except (httpx.TransportError, httpx.HTTPStatusError) as error:
                if self._root.poll() is not None or time.perf_counter() - self._started > START_S:
                    raise Unavailable(f"{self.server.name} does not start; see {self._log.name}") from error
                time.sleep(0.01)

    def ask(self, request: Request) -> str:
        """The label that the server answers. Raises httpx's errors."""
        headers = {"Content-Type": request.content_type}
        answer = httpx.post(self.address + request.path, content=request.body, headers=headers, timeout=10)
        return self.server.label(answer.raise_for_status().json())

    def cpu_seconds(self) -> float:
        """User and system time that the server's processes have used so far."""
        return sum(times.user + times.system for times in (each.cpu_times() for each in self._processes()))

    def resident_bytes(self) -> list[int]:
        """Resident memory of each of the server's processes, largest first."""
        return sorted((each.memory_info().rss for each in self._processes()), reverse=True)

    def sleep(self) -> None:
        """Stop all its processes where they are, so that they take nothing from the server that is measured."""
        for each in self._processes():
            each.suspend()

    def wake(self) -> None:
        for each in self._processes():
            each.resume()

    def stop(self) -> None:
        tree = self._processes()
        self.wake()
        self._root.terminate()
        _, left = psutil.wait_procs(tree, STOP_S)
        for each in left:
            each.kill()
        self._log.close()

    def _processes(self) -> list[psutil.Process]:
        if not self._root.is_running() or self._root.status() == psutil.STATUS_ZOMBIE:
            return []
        return [self._root, *self._root.children(recursive=True)]


def _free_port() -> int:
    """A port of the loopback that nobody listens on, nor on the two above it."""
    while True:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = int(free.getsockname()[1])
        try:
            for above in (1, 2):
                with socket.socket() as neighbour:
                    neighbour.bind(("127.0.0.1", port + above))
        except OSError:
            continue
        return port
