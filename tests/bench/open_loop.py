"""Open loop: requests come when they come, whatever the server does, which is how its users see it."""

import gc
import select
import socket
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from time import perf_counter

import httptools
import numpy as np

from tests.bench.load import Outcome
from tests.bench.servers import Request

CONNECTIONS = 64
SETTLE_S = 1
GRACE_S = 10


@dataclass(frozen=True, kw_only=True)
class Answer:
    """One request's: seconds after the first when it was due, how long it took from then, its status (0: none)."""

    due_s: float
    latency_s: float
    status: int


def open_loop(port: int, requests: Sequence[Request], rate: float, seconds: float, seed: int) -> Outcome:
    """What came of Poisson arrivals; the first second is not counted in the latencies."""
    answers = arrivals(port, requests, rate, SETTLE_S + seconds, seed)
    counted = [answer.latency_s * 1e3 for answer in answers if answer.due_s >= SETTLE_S]
    return Outcome(
        requests=len(answers),
        seconds=SETTLE_S + seconds,
        p50_ms=float(np.percentile(counted, 50)) if counted else np.nan,
        p99_ms=float(np.percentile(counted, 99)) if counted else np.nan,
        errors=round(rate * (SETTLE_S + seconds)) - sum(answer.status == 200 for answer in answers),
    )


def arrivals(
    port: int, requests: Sequence[Request], rate: float, seconds: float, seed: int, *, connections: int = CONNECTIONS
) -> list[Answer]:
    """The answers to Poisson arrivals of `rate` requests a second, over at most `connections` connections.

    Latency counts from the moment the request was due, so a server that stalls cannot hide the requests that it kept
    from being sent (coordinated omission). One core is kept busy, for exact timing, and nothing is collected meanwhile:
    in a process of some size that takes long enough to look like a server that stalls.
    """
    gaps = np.random.default_rng(seed).exponential(1 / rate, size=round(rate * seconds))
    start = perf_counter() + 0.1
    due = start + np.cumsum(gaps)
    wires = [_wire(request, port) for request in requests]
    upcoming, late, idle = deque(due.tolist()), deque[float](), list[_Connection]()
    opened: dict[int, _Connection] = {}
    answers: list[Answer] = []
    with _no_garbage_collection(), select.epoll() as poll:
        while len(answers) < len(due) and perf_counter() < due[-1] + GRACE_S:
            while upcoming and upcoming[0] <= perf_counter():
                late.append(upcoming.popleft())
            while late and (idle or len(opened) < connections):
                if not idle:
                    connection = _Connection(port)
                    opened[connection.socket.fileno()] = connection
                    poll.register(connection.socket, select.EPOLLIN)
                    idle.append(connection)
                # The one used last; the server closes those that have been idle for its keep-alive time.
                idle.pop().send(wires[len(upcoming) % len(wires)], late.popleft())
            for descriptor, _ in poll.poll(0):
                connection = opened[descriptor]
                if connection.receive():
                    taken_s = perf_counter() - connection.due
                    answers.append(Answer(due_s=connection.due - start, latency_s=taken_s, status=connection.status))
                    idle.append(connection)
                if connection.closed:
                    idle.remove(connection)
                    opened.pop(descriptor).socket.close()
    for connection in opened.values():
        connection.socket.close()
    return answers


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


class _Connection:
    """One keep-alive connection with at most one request under way; `status` is 0 until its answer is complete."""

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        # Room for a whole request, so that sending never waits for the server to read.
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        self.due, self.status, self.closed, self._busy = 0.0, 0, False, False

    def send(self, wire: bytes, due: float) -> None:
        self.due, self.status, self._busy = due, 0, True
        self._parser = httptools.HttpResponseParser(self)
        with suppress(OSError):  # a connection that broke shows when it is read
            self.socket.sendall(wire)

    def receive(self) -> bool:
        """Read what has come; True when that ends the request under way, with its status or, if closed, without."""
        try:
            data = self.socket.recv(1 << 16)
        except OSError:
            data = b""
        self.closed = not data
        if data:
            self._parser.feed_data(data)
        ended = self._busy and (self.closed or self.status != 0)
        self._busy = self._busy and not ended
        return ended

    def on_message_complete(self) -> None:
        self.status = self._parser.get_status_code()


def _wire(request: Request, port: int) -> bytes:
    head = f"POST {request.path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Type: {request.content_type}\r\n"
    return f"{head}Content-Length: {len(request.body)}\r\n\r\n".encode() + request.body
