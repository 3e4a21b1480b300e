"""The load on a server: closed loop by wrk for throughput, open loop from the planned send time for latency."""

import json
import select
import socket
import subprocess
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

import httptools
import numpy as np

from tests.bench.servers import Request

SCRIPT = Path(__file__).with_name("load.lua")
CONNECTIONS = 64
SETTLE_S = 1
GRACE_S = 10


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What came of a block of load; `errors` are statuses above 399, lost connections and time-outs."""

    requests: int
    seconds: float
    p50_ms: float
    p99_ms: float
    errors: int


def closed_loop(address: str, requests: Sequence[Request], concurrency: int, seconds: int, folder: Path) -> Outcome:
    """`concurrency` connections of wrk, each sending its next request when it has the answer to the one before."""
    bodies = [folder / f"body-{number}" for number in range(len(requests))]
    for path, request in zip(bodies, requests, strict=True):
        path.write_bytes(request.body)
    url = address + requests[0].path
    options = ["--threads", "1", "--connections", str(concurrency), "--duration", f"{seconds}s", "--timeout", "10s"]
    command = ["wrk", *options, "--script", SCRIPT, url, "--", requests[0].content_type, *bodies]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return Outcome(**json.loads(done.stdout.strip().splitlines()[-1]))


def open_loop(port: int, requests: Sequence[Request], rate: float, seconds: float, seed: int) -> Outcome:
    """Poisson arrivals of `rate` requests a second, whatever the server does: what its users see.

    Latency counts from the moment the request was due, so a server that stalls cannot hide the requests that it kept
    from being sent (coordinated omission). The first second is not counted. One core is kept busy, for exact timing.
    """
    gaps = np.random.default_rng(seed).exponential(1 / rate, size=round(rate * (SETTLE_S + seconds)))
    wires = [_wire(request, port) for request in requests]
    connections = {}
    poll = select.epoll()
    for _ in range(CONNECTIONS):
        connection = _Connection(port)
        connections[connection.socket.fileno()] = connection
        poll.register(connection.socket, select.EPOLLIN)
    idle, late = deque(connections.values()), deque[float]()
    start = perf_counter() + 0.1
    due = start + np.cumsum(gaps)
    upcoming = deque(due.tolist())
    latencies, sent, busy = [], 0, 0
    while upcoming or late or busy:
        now = perf_counter()
        if now > due[-1] + GRACE_S:
            break
        while upcoming and upcoming[0] <= now:
            late.append(upcoming.popleft())
        while late and idle:
            idle.popleft().send(wires[sent % len(wires)], due=late.popleft())
            sent, busy = sent + 1, busy + 1
        for descriptor, _ in poll.poll(0):
            connection = connections[descriptor]
            if connection.receive():
                latencies.append((connection.due, perf_counter() - connection.due, connection.status))
                idle.append(connection)
                busy -= 1
    for connection in connections.values():
        connection.socket.close()
    poll.close()
    counted = [latency for when, latency, _ in latencies if when >= start + SETTLE_S]
    p50, p99 = np.percentile(counted, [50, 99]) * 1e3
    failed = sum(status != 200 for _, _, status in latencies)
    return Outcome(
        requests=len(latencies),
        seconds=float(due[-1] - start),
        p50_ms=float(p50),
        p99_ms=float(p99),
        errors=failed + len(due) - len(latencies),
    )


class _Connection:
    """One keep-alive connection with at most one request under way."""

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        # Room for a whole request, so that sending never waits for the server to read.
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        self.due, self.status = 0.0, 0

    def send(self, wire: bytes, due: float) -> None:
        self.due, self.status = due, 0
        self._parser = httptools.HttpResponseParser(self)
        self.socket.sendall(wire)

    def receive(self) -> bool:
        """Read what has come; True when the answer is complete, or will never be."""
        data = self.socket.recv(1 << 16)
        if not data:
            raise ConnectionError("the server closed a connection")
        self._parser.feed_data(data)
        return self.status != 0

    def on_message_complete(self) -> None:
        self.status = self._parser.get_status_code()


def _wire(request: Request, port: int) -> bytes:
    head = f"POST {request.path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Type: {request.content_type}\r\n"
    return f"{head}Content-Length: {len(request.body)}\r\n\r\n".encode() + request.body
