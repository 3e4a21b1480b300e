import asyncio
from collections.abc import Awaitable, Callable, Sequence

import pytest
import uvicorn
from starlette.types import Receive, Scope, Send

from serving import connection
from serving.connection import MAX_HEAD_BYTES, MAX_PIPELINED, BoundedProtocol, bound_connections
from tests.support.server import free_port

GET = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"
CHUNKED = b"POST / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\n"
KIB = 1024


async def application(scope: Scope, receive: Receive, send: Send) -> None:
    """Reads the body, and answers with its length."""
    size, more = 0, True
    while more:
        message = await receive()
        size, more = size + len(message.get("body", b"")), message.get("more_body", False)
    body = str(size).encode()
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(body))]})
    await send({"type": "http.response.body", "body": body})


async def reply(port: int, pieces: Sequence[bytes], *, pause_s: float = 0.0, wait_s: float = 0.3) -> bytes:
    """What the server sends to a client that sends these pieces until it is answered and then waits; with its end."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    received = b""

    async def read() -> None:
        nonlocal received
        while part := await reader.read(KIB):
            received += part
        received += b"closed"

    reading = asyncio.create_task(read())
    for piece in pieces:
        writer.write(piece)
        await asyncio.sleep(pause_s)
        if received:
            break
    await asyncio.wait([reading], timeout=wait_s)
    reading.cancel()
    writer.close()
    return received


def served(asked: Callable[[int], Awaitable[None]]) -> None:
    """Run `asked` with the port of a server in this process that uses the bounded protocol."""

    async def scenario() -> None:
        port = free_port()
        bound_connections()
        config = uvicorn.Config(application, port=port, log_config=None, lifespan="off", timeout_keep_alive=1)
        server = uvicorn.Server(config)
        serving = asyncio.create_task(server.serve())
        while not server.started:
            await asyncio.sleep(0.01)
        assert config.http_protocol_class is BoundedProtocol
        try:
            await asked(port)
        finally:
            server.should_exit = True
            await serving

    asyncio.run(scenario())


def test_pipelined_requests_are_answered_up_to_a_limit() -> None:
    async def asked(port: int) -> None:
        assert (await reply(port, [GET * (MAX_PIPELINED + 1)])).count(b"HTTP/1.1 200") == MAX_PIPELINED + 1
        refused = await reply(port, [GET * 1000])
        assert refused.startswith(b"HTTP/1.1 400")
        assert refused.endswith(b"closed")

    served(asked)


def test_a_head_is_bounded_however_it_arrives() -> None:
    async def asked(port: int) -> None:
        for size, status in ((MAX_HEAD_BYTES - KIB, b"200"), (MAX_HEAD_BYTES + KIB, b"431")):
            head = GET[:-2] + b"X-Long: " + bytes([97]) * size + b"\r\n\r\n"
            halves = [head[: size // 2], head[size // 2 :]]
            for pieces, pause_s in (
                ([head], 0.0),
                (halves, 0.05),
                ([head[at : at + KIB] for at in range(0, len(head), KIB)], 0.0),
            ):
                assert (await reply(port, pieces, pause_s=pause_s)).startswith(b"HTTP/1.1 " + status)
        many = [b"X-%d: a\r\n" % number for number in range(10_000)]
        assert (await reply(port, [GET[:-2], *many])).startswith(b"HTTP/1.1 431")
        large = b"POST / HTTP/1.1\r\nContent-Length: 1000000\r\n\r\n" + bytes(10**6)
        both = await reply(port, [large + GET[:20], GET[20:]])
        assert both.count(b"HTTP/1.1 200") == 2, "the bytes of a body are none of the next head"

    served(asked)


def test_trailers_are_bounded() -> None:
    async def asked(port: int) -> None:
        assert (await reply(port, [CHUNKED, b"X-Sum: 1\r\n\r\n"])).startswith(b"HTTP/1.1 200")
        endless = await reply(port, [CHUNKED, *[b"X: a\r\n" * KIB] * 20], pause_s=0.005)
        assert endless.startswith(b"HTTP/1.1 431")

    served(asked)


def test_empty_lines_alone_do_not_hold_a_connection() -> None:
    async def asked(port: int) -> None:
        assert await reply(port, [b"\r\n"], wait_s=3) == b"closed"
        assert (await reply(port, [GET, b"\r\n"], pause_s=0.1)).startswith(b"HTTP/1.1 200")

    served(asked)


def test_a_head_that_stalls_ends_the_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "HEAD_S", 0.2)

    async def asked(port: int) -> None:
        assert (await reply(port, [GET[:-1]])).startswith(b"HTTP/1.1 408")
        after = await reply(port, [GET + GET[:-1]])
        assert after.startswith(b"HTTP/1.1 200")
        assert b"HTTP/1.1 408" in after
        in_time = await reply(port, [GET[:9], GET[9:]], pause_s=0.1)
        assert b"408" not in in_time

    served(asked)
