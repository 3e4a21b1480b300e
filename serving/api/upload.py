"""Files of an HTTP request: a raw body or multipart, read up to a limit and kept in memory; no URL is fetched."""

import asyncio
from dataclasses import dataclass

from multipart import MultipartError, MultipartSegment, PushMultipartParser, parse_options_header
from starlette.requests import ClientDisconnect, Request

from serving.api.admission import Reservation
from serving.api.errors import RequestError
from serving.api.linger import declared_bytes
from serving.api.waiting import await_unless
from serving.settings import Settings

MULTIPART_OVERHEAD = 64 * 1024
"""Bytes for boundaries and part headers around the files."""
BATCH_BODY_FILES = 4
"""A body of several images may have the bytes of this many largest files; MAX_BATCH bounds the number of files."""
CROWDED_IDLE_S = 1.0
"""Seconds without a byte after which an upload ends while bodies take more than half of their memory."""
HOW_TO_SEND = (
    "send the image as multipart field {field!r}, or as the raw body with Content-Type image/jpeg, image/png, ..."
)


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Limits of one upload: files, bytes of body, seconds in total, and seconds without a byte."""

    files: int
    bytes: int
    seconds: float
    idle_s: float

    @classmethod
    def of_one(cls, settings: Settings) -> "Limits":
        """For a body that holds one image."""
        return cls(files=1, bytes=settings.max_bytes, seconds=settings.timeout_s, idle_s=settings.idle_s)

    @classmethod
    def of_batch(cls, settings: Settings) -> "Limits":
        """For a body that holds several images."""
        size = settings.max_bytes * BATCH_BODY_FILES
        return cls(files=settings.max_batch, bytes=size, seconds=settings.timeout_s, idle_s=settings.idle_s)


async def read_files(request: Request, field: str, limits: Limits, reservation: Reservation) -> list[bytes]:
    """The files of a request, at least one: its raw body, or the file parts named `field` of a multipart form.

    `reservation` counts the bytes that are read. Raises RequestError, Overloaded, and ClientDisconnect when the client
    disconnects.
    """
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        raise RequestError(415, "content_encoding_not_supported", "send the image as it is, without Content-Encoding")
    kind, options = parse_options_header(request.headers.get("content-type", ""))
    how_to_send = HOW_TO_SEND.format(field=field)
    is_form = kind == "multipart/form-data"
    if is_form and "boundary" not in options:
        raise RequestError(400, "malformed_multipart", "the Content-Type names no multipart boundary")
    if not (is_form or kind.startswith("image/") or kind == "application/octet-stream"):
        media_type = kind or "no Content-Type"
        raise RequestError(415, "unsupported_media_type", f"{media_type} is not accepted; {how_to_send}")
    body = await read_body(request, limits.bytes + is_form * MULTIPART_OVERHEAD, limits, reservation)
    if not body:
        raise RequestError(400, "missing_image", f"the body is empty; {how_to_send}")
    return _files(body, options["boundary"], field, limits.files, how_to_send) if is_form else [body]


async def read_body(request: Request, most: int, limits: Limits, reservation: Reservation) -> bytes:
    """The body, at most `most` bytes. Raises RequestError, Overloaded, ClientDisconnect."""
    if declared_bytes(request.headers.get("content-length", "").encode("latin-1")) > most:
        raise _too_large(most)
    clock = asyncio.get_running_loop().time
    start = latest = clock()

    async def read() -> bytes:
        nonlocal latest
        body: list[bytes] = []
        size = 0
        while True:
            message = await request.receive()
            if message["type"] == "http.disconnect":
                raise ClientDisconnect
            latest = clock()
            chunk = message.get("body", b"")
            size += len(chunk)
            if size > most:
                raise _too_large(most)
            reservation.add_bytes(len(chunk))
            body.append(chunk)
            if not message.get("more_body", False):
                return body[0] if len(body) == 1 else b"".join(body)

    def idle_s() -> float:
        return min(limits.idle_s, CROWDED_IDLE_S) if reservation.crowded else limits.idle_s

    async def stalled() -> Exception:
        while (left := min(start + limits.seconds, latest + idle_s()) - clock()) > 0:
            await asyncio.sleep(min(left, CROWDED_IDLE_S))  # others may have filled the memory meanwhile
        late = f"the body did not arrive within {limits.seconds:g} s, or nothing of it for {idle_s():g} s"
        return RequestError(408, "upload_timeout", late, {"Connection": "close"})

    return await await_unless(read(), stalled, within=min(limits.seconds, limits.idle_s))


def _too_large(most: int) -> RequestError:
    return RequestError(413, "payload_too_large", f"the body is larger than the {most:,} bytes accepted")


def _files(body: bytes, boundary: str, field: str, max_files: int, how_to_send: str) -> list[bytes]:
    try:
        parts = _parts(body, boundary, max_files + 1)
    except MultipartError as error:
        broken = "the body is not the multipart form its header announces, or is cut off before the closing boundary"
        raise RequestError(400, "malformed_multipart", broken) from error
    names = [part.name.encode("latin-1").decode("utf-8", "replace") for part, _ in parts]
    if field not in names:
        received = f"the form has only {', '.join(map(repr, names))}" if names else "the form is empty"
        raise RequestError(400, "missing_image", f"{received}; {how_to_send}")
    if unexpected := sorted(set(names) - {field}):
        raise RequestError(400, "unexpected_field", f"no field {unexpected[0]!r} is expected here, only {field!r}")
    if any(part.filename is None for part, _ in parts):
        raise RequestError(400, "image_must_be_file", f"field {field!r} is text; it must be a file")
    if len(parts) > max_files:
        raise RequestError(400, "too_many_files", f"at most {max_files} file(s) are accepted in one request")
    return [data for _, data in parts]


def _parts(body: bytes, boundary: str, most: int) -> list[tuple[MultipartSegment, bytes]]:
    """Each part's header and bytes, one piece a part because the body is one. Raises MultipartError, RequestError."""
    parts: list[tuple[MultipartSegment, bytes]] = []
    # In Latin-1 every byte is a character: a file name may be in any encoding, since it is not used.
    with PushMultipartParser(boundary, strict=True, header_charset="latin-1") as parser:
        data = b""
        for event in parser.parse(body):
            if isinstance(event, MultipartSegment):
                if len(parts) == most:
                    raise RequestError(400, "too_many_files", "the form has more parts than this route accepts")
                part, data = event, b""
            elif event is None:
                parts.append((part, data))
            else:
                data = event
    return parts
