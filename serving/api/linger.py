"""Reading on after an answer that was given before the body was read.

A connection that is closed while its client still sends is reset, and the reset can destroy the answer on its way. So
web servers read and drop for a while (nginx: lingering_close), and so does this service, within limits.
"""

import asyncio
from collections.abc import MutableMapping
from time import perf_counter
from typing import Any

from starlette.types import Message, Receive, Scope, Send

MAX_BYTES = 128 * 2**20
MAX_S, IDLE_S = 10.0, 2.0
"""Seconds in total, and seconds without a byte."""
MAX_CONNECTIONS = 64
"""Connections of a process that are read on at a time; others are closed at once, so that a flood holds no more."""
KEPT_BYTES = 64 * 1024
"""A connection whose body is declared to be no longer stays open for the next request."""
END: Message = {"type": "http.response.body", "body": b"", "more_body": False}


class Lingering:
    """The connections of a process that are read on."""

    def __init__(self) -> None:
        self._connections = 0

    async def drop(self, receive: Receive) -> None:
        """Read and drop the rest of a body, within the limits."""
        if self._connections >= MAX_CONNECTIONS:
            return
        self._connections += 1
        try:
            async with asyncio.timeout(MAX_S):
                await _drop(receive)
        except TimeoutError:
            pass  # the client is too slow, and may lose the answer
        finally:
            self._connections -= 1


async def _drop(receive: Receive) -> None:
    size = 0
    while size <= MAX_BYTES:
        async with asyncio.timeout(IDLE_S):
            message = await receive()
        if message["type"] == "http.disconnect" or not message.get("more_body", False):
            return
        size += len(message.get("body", b""))


def declared_bytes(content_length: bytes) -> int:
    """The number in a Content-Length; 0 where there is none. `int` takes no more than 4,300 digits, also of zeros."""
    return int(content_length.lstrip(b"0")[:20] or b"0") if content_length.isdigit() else 0


class Exchange:
    """A request and its answer: whether the body has been read when the answer is complete.

    If not, the end of the answer is withheld, which keeps the connection open; the client has all of the answer, as its
    Content-Length says. `finish` sends the end.
    """

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers: MutableMapping[bytes, bytes] = dict(scope["headers"])
        self._chunked = b"transfer-encoding" in headers
        self._declared = declared_bytes(headers.get(b"content-length", b""))
        self._unread = self._chunked or self._declared > 0
        # A client that waits for 100 Continue sends nothing after another answer.
        self._begun = headers.get(b"expect", b"").lower() != b"100-continue"
        self._receive, self._send = receive, send
        self._withheld = False
        self.read_at = 0.0
        """When the end of the body was read, in seconds of `perf_counter`; 0 before that, and without a body."""

    async def receive(self) -> Message:
        """The next part of the body."""
        self._begun = True
        message = await self._receive()
        if self._unread and (message["type"] == "http.disconnect" or not message.get("more_body", False)):
            self._unread, self.read_at = False, perf_counter()
        return message

    async def send(self, message: Message) -> None:
        """Send a part of the answer."""
        lingers = self._unread and self._begun
        if message["type"] == "http.response.start" and lingers and (self._chunked or self._declared > KEPT_BYTES):
            others: Any = [header for header in message["headers"] if header[0] != b"connection"]
            message["headers"] = [*others, (b"connection", b"close")]
        if message["type"] == "http.response.body" and lingers and not message.get("more_body", False):
            self._withheld = True
            message = {**message, "more_body": True}
        await self._send(message)

    async def finish(self, lingering: Lingering) -> None:
        """Read on where the client still sends, and end the answer."""
        if self._withheld:
            await lingering.drop(self._receive)
            await self._send(END)
