"""A connection before there is a request: the limits that uvicorn's protocol does not have.

uvicorn keeps any number of pipelined requests, and headers and trailers of any size and age.
"""

from asyncio import BaseTransport, TimerHandle
from http import HTTPStatus
from typing import Any

from uvicorn.config import HTTP_PROTOCOLS
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

MAX_PIPELINED = 8
"""Requests of a connection that wait for the answer to an earlier one."""
MAX_HEAD_BYTES = 64 * 1024
"""Of a request line with its headers, and of trailers."""
HEAD_S = 10.0
"""Seconds in which the rest of a head must follow its first bytes."""


class BoundedProtocol(HttpToolsProtocol):
    """Answers 400 to too many pipelined requests, 431 to a head that is too large, 408 to one that stalls; then closes.

    Bytes are counted by the pieces in which they arrive, and exactly only where a piece is larger than a head may be.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._last_progress = self._since = 0
        """Bytes of the last piece in which a head began or ended or a part of a body came, and of those after it."""
        self._head_timer: TimerHandle | None = None
        self._status = 400

    def connection_made(self, transport: BaseTransport) -> None:
        """Close a connection without a first request as one without a next request."""
        super().connection_made(transport)  # type: ignore[arg-type]
        self.timeout_keep_alive_task = self.loop.call_later(self.timeout_keep_alive, self.timeout_keep_alive_handler)

    def connection_lost(self, exc: Exception | None) -> None:
        """Cancel what would keep this object until its timer."""
        super().connection_lost(exc)
        self._unset_keepalive_if_required()
        self._cancel_head_timer()

    def data_received(self, data: bytes) -> None:
        """Parse a piece, and count and time what stays unfinished."""
        scope, in_head = self.scope, self._in_head
        body = 0 if self.cycle is None else len(self.cycle.body)
        self._since += len(data)
        super().data_received(data)
        cycle = self.cycle
        if cycle is not None and cycle.scope is self.scope and not cycle.more_body:
            self._last_progress, self._since = len(data), 0
            return  # nearly all requests: they arrive in one piece
        if self.scope is not scope or self._in_head != in_head or (cycle is not None and len(cycle.body) > body):
            self._last_progress, self._since = len(data), 0
        if self._since > MAX_HEAD_BYTES:
            self._refuse(431)
        elif self._in_head and self._head_timer is None:
            self._head_timer = self.loop.call_later(HEAD_S, self._on_late_head)
        elif self._idle and self.timeout_keep_alive_task is None:  # empty lines alone, which the parser skips
            self.timeout_keep_alive_task = self.loop.call_later(
                self.timeout_keep_alive, self.timeout_keep_alive_handler
            )

    def on_headers_complete(self) -> None:
        """A head is complete. The parser turns what is raised here into a call of `send_400_response`."""
        if self._head_timer is not None:
            self._cancel_head_timer()
        if self._last_progress + self._since > MAX_HEAD_BYTES and self._head_bytes() > MAX_HEAD_BYTES:
            self._status = 431
            raise ValueError("the head is too large")
        if len(self.pipeline) >= MAX_PIPELINED:
            raise ValueError("too many pipelined requests")
        super().on_headers_complete()

    def send_400_response(self, msg: str) -> None:
        """Refuse what cannot be parsed, or what `on_headers_complete` has refused."""
        self._refuse(self._status)

    @property
    def _in_head(self) -> bool:
        return self.scope is not None and "method" not in self.scope  # the parser begins it, and adds the method last

    @property
    def _idle(self) -> bool:
        return not self._in_head and (self.cycle is None or self.cycle.response_complete)

    def _head_bytes(self) -> int:
        return len(self.url) + sum(len(name) + len(value) for name, value in self.headers)

    def _cancel_head_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _on_late_head(self) -> None:
        self._head_timer = None
        if self.cycle is None or self.cycle.response_complete:
            self._refuse(408)
        else:  # nothing is read while an earlier request is answered
            self._head_timer = self.loop.call_later(HEAD_S, self._on_late_head)

    def _refuse(self, status: int) -> None:
        if self.transport.is_closing():
            return
        phrase = HTTPStatus(status).phrase.encode()
        fields = b"content-type: text/plain; charset=utf-8\r\ncontent-length: %d\r\nconnection: close\r\n\r\n"
        self.transport.write(STATUS_LINE[status] + fields % len(phrase) + phrase)
        self.transport.close()


def bound_connections() -> None:
    """Have uvicorn use this protocol; call it before a server's configuration is loaded."""
    HTTP_PROTOCOLS["auto"] = f"{__name__}:{BoundedProtocol.__name__}"
