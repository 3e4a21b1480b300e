"""HTTP as bytes on a socket: requests that no client library would send, and the reply to them."""

import json
import select
import socket
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

BOUNDARY = "X"
FORM = f"multipart/form-data; boundary={BOUNDARY}"
WAIT_S = 30.0


@dataclass(frozen=True)
class Reply:
    """Status 0: the connection was closed without a reply. `rest` is what came behind the first reply."""

    status: int
    headers: dict[str, str]
    body: bytes
    rest: bytes = b""

    @property
    def code(self) -> str | None:
        """The code in the one envelope of our errors; None for any other body."""
        try:
            envelope = json.loads(self.body)
        except ValueError:
            return None
        if not (isinstance(envelope, dict) and set(envelope) == {"error"}):
            return None
        assert set(envelope["error"]) == {"code", "message", "request_id"}
        return str(envelope["error"]["code"])


def request(
    body: bytes = b"",
    kind: str | None = None,
    *headers: str,
    method: str = "POST",
    target: str = "/predict",
    length: int | None = -1,
) -> bytes:
    """One HTTP/1.1 request; `length` None leaves Content-Length out, another number is what it claims."""
    lines = [f"{method} {target} HTTP/1.1", "Host: localhost", "Connection: close", *headers]
    if kind is not None:
        lines.append(f"Content-Type: {kind}")
    if length is not None:
        lines.append(f"Content-Length: {len(body) if length == -1 else length}")
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + body


def part(data: bytes, disposition: str = 'form-data; name="image"; filename="a.jpg"', *headers: str) -> bytes:
    lines = [f"Content-Disposition: {disposition}", *headers, "", ""]
    return "\r\n".join(lines).encode() + data


def form(*parts: bytes, end: bytes = b"--\r\n") -> bytes:
    delimiter = f"--{BOUNDARY}".encode()
    return b"".join(delimiter + b"\r\n" + each + b"\r\n" for each in parts) + delimiter + end


def raw_form(body: bytes, kind: str = FORM) -> bytes:
    return request(body, kind)


def upload(data: bytes, *headers: str, name: str = "image") -> bytes:
    """An image as a browser would send it."""
    return raw_form(form(part(data, f'form-data; name="{name}"; filename="a.jpg"', *headers)))


def chunked(pieces: Iterable[bytes], kind: str = "image/png") -> bytes:
    body = b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces)
    return request(body + b"0\r\n\r\n", kind, "Transfer-Encoding: chunked", length=None)


def connect(address: str) -> socket.socket:
    where = urlsplit(address)
    assert where.hostname
    assert where.port
    return socket.create_connection((where.hostname, where.port), timeout=WAIT_S)


def exchange(address: str, sent: bytes | Sequence[bytes], *, pause_s: float = 0.0) -> Reply:
    """Send, in pieces with a pause between them where given, until all is sent or a reply comes; give the first one."""
    pieces = [sent[at : at + 65_536] for at in range(0, len(sent), 65_536)] if isinstance(sent, bytes) else sent
    with connect(address) as connection:
        for piece in pieces:
            if select.select([connection], [], [], 0)[0]:
                break
            try:
                connection.sendall(piece)
            except (BrokenPipeError, ConnectionResetError):
                break
            time.sleep(pause_s)
        return read_reply(connection)


def read_reply(connection: socket.socket) -> Reply:
    """Read until the other side closes, which every request here asks for."""
    received = b""
    try:
        while piece := connection.recv(1 << 20):
            received += piece
    except ConnectionResetError:  # it closed without having read all that was sent
        pass
    if not received:
        return Reply(0, {}, b"")
    head, _, body = received.partition(b"\r\n\r\n")
    status, *lines = head.decode("latin-1").split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    length = int(headers.get("content-length", len(body)))
    return Reply(int(status.split()[1]), headers, body[:length], body[length:])
