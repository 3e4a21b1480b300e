"""A server process with everything beside it that a bad request might touch."""

import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
from PIL import Image

from serving.inference.predictor import INLINE_BYTES
from tests.support.bad_inputs import GOOD, Surroundings
from tests.support.forged import encoded
from tests.support.server import serving
from tests.support.wire import exchange, request, upload

SETTLE_S = 5.0
"""How long a thread or a file may take to go after the reply has been sent."""


@dataclass
class Watched:
    """A server under attack, and what must be as before when a row is over."""

    address: str
    worker: psutil.Process
    folders: tuple[Path, ...]
    log: Path
    surroundings: Surroundings
    callers: list[tuple[socket.socket, object]]
    golden: bytes
    threads: int

    def files(self) -> set[Path]:
        return {path for folder in self.folders for path in folder.rglob("*")}

    def metrics(self) -> str:
        return exchange(self.address, request(method="GET", target="/metrics", length=None)).body.decode()

    def cpu_s(self) -> float:
        times = self.worker.cpu_times()
        return times.user + times.system

    def forget_peak(self) -> int:
        """Resident bytes now, from which the peak is counted anew."""
        Path(f"/proc/{self.worker.pid}/clear_refs").write_text("5")
        return self.worker.memory_info().rss

    def peak(self) -> int:
        status = Path(f"/proc/{self.worker.pid}/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0]) * 1024


@contextmanager
def watched(model: Path, home: Path, *arguments: str, **environment: str) -> Iterator[Watched]:
    """A server with folders of its own, a canary and a listener beside it."""
    folders = (home / "bentoml", home / "tmp")
    for folder in folders:
        folder.mkdir()
    log = home / "log"
    callers: list[tuple[socket.socket, object]] = []
    with socket.create_server(("127.0.0.1", 0)) as listener, ExitStack() as running:
        threading.Thread(target=lambda: _accept(listener, callers), daemon=True).start()
        calls = f"http://127.0.0.1:{listener.getsockname()[1]}"
        # Also the proxy of whatever the server fetches: BentoML itself fetches nothing from a loopback, but by a proxy.
        environment |= {"BENTOML_HOME": str(folders[0]), "TMPDIR": str(folders[1]), "http_proxy": calls}
        address = running.enter_context(serving(model, *arguments, log=log, **environment))
        surroundings = Surroundings(home / "canary", f"{calls}/x")
        # Small images, and large ones, which threads decode: the server then has every thread that it ever starts.
        noise = encoded(Image.effect_noise((128, 128), 100), "PNG")
        assert len(noise) > INLINE_BYTES
        with ThreadPoolExecutor(16) as pool:
            replies = list(pool.map(lambda sent: exchange(address, sent), [GOOD, upload(noise)] * 32))
        assert {reply.status for reply in replies} <= {200, 429}
        # Each answer of the service that a row may see for the first time, so that no row has to make its series.
        for path, status in (("/readyz", 200), ("/nowhere", 404), ("/metrics", 200)):
            assert exchange(address, request(method="GET", target=path, length=None)).status == status
        yield Watched(
            address,
            _worker(address),
            folders,
            log,
            surroundings,
            callers,
            exchange(address, GOOD).body,
            _worker(address).num_threads(),
        )


def _accept(listener: socket.socket, callers: list[tuple[socket.socket, object]]) -> None:
    try:
        while True:
            callers.append(listener.accept())
    except OSError:  # closed: the test is over
        return


def _worker(address: str) -> psutil.Process:
    """The process that answers: the youngest that listens on the port."""
    port = int(address.rsplit(":", 1)[1])
    pids = {
        connection.pid
        for connection in psutil.net_connections("tcp4")
        if connection.status == psutil.CONN_LISTEN and connection.laddr.port == port and connection.pid
    }
    return max((psutil.Process(pid) for pid in pids), key=lambda process: process.create_time())
