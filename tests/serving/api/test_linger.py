import asyncio
import select
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from socket import socket
from typing import Any

import pytest
from starlette.types import Message

from serving.api.linger import MAX_BYTES, MAX_CONNECTIONS, Lingering
from tests.support.http_clients import CLIENTS, Client
from tests.support.server import serving
from tests.support.wire import connect

MIB = 2**20
LIMIT = 4 * MIB
RAW = {"Content-Type": "image/png"}
FORM = {"Content-Type": "multipart/form-data; boundary=XbX"}
TOKEN = {"Authorization": "Bearer right"}


def body_of(kind: dict[str, str], size: int) -> bytes:
    """`size` bytes as they are, or as the file of a form."""
    head = b'--XbX\r\nContent-Disposition: form-data; name="image"; filename="a.png"\r\n\r\n'
    return b"\x89" * size if kind is RAW else head + b"\x89" * size + b"\r\n--XbX--\r\n"


@pytest.fixture(scope="module")
def strict(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server with a token and a small limit."""
    folder = tmp_path_factory.mktemp("strict")
    (folder / "tokens").write_text("right\n")
    settings = {"TOKEN_FILE": str(folder / "tokens"), "MAX_BYTES": str(LIMIT), "IDLE_S": "600", "TIMEOUT_S": "600"}
    environment: dict[str, Any] = {f"TWINLENS_{name}": value for name, value in settings.items()}
    with serving(run / "model.onnx", BENTOML_HOME=str(folder / "home"), **environment) as address:
        yield address


@pytest.fixture(scope="module")
def without_model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("without")
    with serving(folder / "no.onnx", until="livez", BENTOML_HOME=str(folder / "home")) as address:
        yield address


def unfinished(address: str, path: str, size: int) -> socket:
    """A connection whose body of this size has arrived but for its last byte."""
    connection = connect(address)
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/png\r\nContent-Length: {size}\r\n"
    connection.sendall(f"{head}Authorization: Bearer right\r\n\r\n".encode() + bytes(size - 1))
    return connection


@pytest.fixture(scope="module")
def full(strict: str) -> Iterator[str]:
    """The same server while bodies of several images, which do not end, take all their memory: that of eight files."""
    with ExitStack() as stack:
        for _ in range(2):
            stack.enter_context(unfinished(strict, "/predict_batch", 4 * LIMIT))
        until = time.monotonic() + 30
        while CLIENTS["httpx"](f"{strict}/predict_batch", bytes(LIMIT), RAW | TOKEN) != 429:
            assert time.monotonic() < until, "the server has not read the other bodies"
        yield strict


def test_uploads_that_stall_end_soon_once_they_fill_half_of_the_memory(strict: str) -> None:
    """TWINLENS_IDLE_S is 600 s here."""
    with ExitStack() as stack:
        connections = [stack.enter_context(unfinished(strict, "/predict", LIMIT)) for _ in range(9)]
        ended, _, _ = select.select(connections, [], [], 8)
        assert ended[0].recv(65_536).startswith(b"HTTP/1.1 408")


@pytest.mark.parametrize("kind", [RAW, FORM], ids=["raw", "form"])
@pytest.mark.parametrize("client", CLIENTS.values(), ids=CLIENTS.keys())
class TestAnAnswerBeforeTheBodyWasReadArrives:
    def test_401(self, strict: str, client: Client, kind: dict[str, str]) -> None:
        assert client(f"{strict}/predict", body_of(kind, 12 * MIB), kind) == 401

    def test_413(self, strict: str, client: Client, kind: dict[str, str]) -> None:
        assert client(f"{strict}/predict", body_of(kind, 12 * MIB), kind | TOKEN) == 413

    def test_503(self, without_model: str, client: Client, kind: dict[str, str]) -> None:
        assert client(f"{without_model}/predict", body_of(kind, 12 * MIB), kind) == 503

    def test_429(self, full: str, client: Client, kind: dict[str, str]) -> None:
        assert client(f"{full}/predict_batch", body_of(kind, LIMIT), kind | TOKEN) == 429
        assert client(f"{full}/predict", body_of(kind, 1000), kind | TOKEN) == 415, "one image still has room"


def test_a_small_body_that_is_refused_keeps_its_connection(strict: str) -> None:
    with connect(strict) as connection:
        for _ in range(2):
            head = (
                b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/png\r\nContent-Length: 1000\r\n\r\n"
            )
            connection.sendall(head + bytes(1000))
            answer = connection.recv(65_536)
            while not answer.endswith(b"}}"):  # head and body may arrive apart
                answer += connection.recv(65_536)
            assert answer.startswith(b"HTTP/1.1 401")
            assert b"connection: close" not in answer


def test_a_client_that_stops_sending_is_let_go(strict: str) -> None:
    with connect(strict) as connection:
        connection.settimeout(8)
        connection.sendall(
            b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99999999\r\n\r\n" + bytes(1000)
        )
        received = b""
        while part := connection.recv(65_536):
            received += part
        assert received.startswith(b"HTTP/1.1 401")
        assert b"connection: close" in received


def test_an_endless_body_is_dropped_up_to_a_limit() -> None:
    size = 0

    async def receive() -> Message:
        nonlocal size
        size += MIB
        return {"type": "http.request", "body": bytes(MIB), "more_body": True}

    asyncio.run(Lingering().drop(receive))
    assert MAX_BYTES < size <= MAX_BYTES + MIB


def test_a_flood_holds_a_bounded_number_of_connections() -> None:
    async def receive() -> Message:
        await asyncio.sleep(60)
        raise AssertionError

    async def flood() -> int:
        lingering = Lingering()
        tasks = [asyncio.create_task(lingering.drop(receive)) for _ in range(MAX_CONNECTIONS + 50)]
        await asyncio.sleep(0.1)
        held = sum(not task.done() for task in tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.wait_for(lingering.drop(receive_end), 1)
        return held

    async def receive_end() -> Message:
        return {"type": "http.disconnect"}

    assert asyncio.run(flood()) == MAX_CONNECTIONS
