"""Bad inputs, rows 1 to 50: HTTP, content types, multipart forms, sizes."""

import base64
import pickle
from collections.abc import Callable

from tests.support.bad_inputs import MAX_BYTES, MIB, Surroundings, row
from tests.support.forged import (
    PNG,
)
from tests.support.pickles import Canary
from tests.support.wire import (
    FORM,
    Reply,
    chunked,
    connect,
    exchange,
    form,
    part,
    raw_form,
    read_reply,
    request,
    upload,
)


def text(kind: str, body: bytes = b'{"image": "/etc/hostname"}', *headers: str) -> bytes:
    return request(body, kind, *headers)


def raw(*headers: str, body: bytes = PNG, length: int | None = None) -> bytes:
    return request(body, "image/png", *headers, length=length)


# --- 3a. HTTP framing; no code: uvicorn answers in plain text, before there is a request

row(1, "content length that is none", 400, None, {n: raw(f"Content-Length: {n}") for n in ("abc", "-1")})
# The parser takes any number of zeros before a length.
row(1, "content length of 4,301 digits", 200, None, raw(f"Content-Length: {len(PNG):04301}"))
row(2, "two content lengths", 400, None, raw("Content-Length: 5", length=-1))
PIPELINED = b"GET /model HTTP/1.1\r\nHost: localhost\r\n\r\n" * 1000
row(2, "a thousand pipelined requests", 400, None, PIPELINED)
row(3, "content length and chunked", 400, None, raw("Transfer-Encoding: chunked", length=-1))
row(4, "chunk of no size", 400, None, raw("Transfer-Encoding: chunked", body=b"zz\r\nabc\r\n0\r\n\r\n"))
HELLO = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(500)
row(5, "TLS on a plain port", 400, None, HELLO)
# What is no HTTP/1.1 request but can be understood is answered: nothing here depends on Host.
row(5, "HTTP/0.9", 405, "method_not_allowed", b"GET /predict\r\n\r\n")
row(5, "no Host", 405, "method_not_allowed", b"GET /predict HTTP/1.1\r\nConnection: close\r\n\r\n")
row(6, "header of 100 KB", 431, None, raw("X-Long: " + "a" * 100_000, length=-1))
row(
    6,
    "headers of 400 MB",
    431,
    None,
    {"": lambda address: exchange(address, [b"GET / HTTP/1.1\r\nA: ", *[bytes([97]) * MIB] * 400])},
)
# 414 is the ingress's; here the parser refuses it, or what bounds the whole head.
row(7, "URL of 100 KB", (400, 431), None, request(PNG, "image/png", target="/" + "a" * 100_000))
SOCKET = ("Upgrade: websocket", "Sec-WebSocket-Version: 13", "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==")


def websocket(path: str) -> bytes:
    return (
        request(method="GET", target=path, length=None).replace(b"Connection: close", b"Connection: Upgrade")[:-2]
        + "\r\n".join([*SOCKET, "", ""]).encode()
    )


row(8, "websocket", 403, None, {path: websocket(path) for path in ("/predict", "/nowhere")})
METHODS = ("GET", "PUT", "DELETE", "OPTIONS", "TRACE", "PATCH")
row(9, "other methods", 405, "method_not_allowed", {method: request(method=method) for method in METHODS})
row(9, "HEAD", 405, None, request(method="HEAD"))
PATHS = ("/predict/", "//predict", "/PREDICT", "/predict%00", "/..%2fpredict", "/static_content/x", "/schema.jsons")
row(10, "other paths", 404, "not_found", {path: request(PNG, "image/png", target=path) for path in PATHS})


def stalled(address: str) -> Reply:
    with connect(address) as connection:
        connection.sendall(upload(PNG)[:-1000])
        return read_reply(connection)


def dripping(address: str) -> Reply:
    *head, body = upload(PNG).partition(b"\r\n\r\n")
    return exchange(address, [b"".join(head), *(body[at : at + 1] for at in range(1000))], pause_s=0.2)


def gone(address: str) -> Reply:
    with connect(address) as connection:
        connection.sendall(upload(PNG)[:-1000])
    return Reply(0, {}, b"")


def expecting(address: str) -> Reply:
    """The body is never sent: a server that waits for it does not answer."""
    return exchange(address, raw("Expect: 100-continue", f"Content-Length: {2 * MAX_BYTES}", body=b""))


row(11, "body that stalls", 408, "upload_timeout", {"": stalled}, slow_sender=True)
row(12, "body of a few bytes a second", 408, "upload_timeout", {"": dripping}, slow_sender=True)
row(13, "client that goes away", 0, None, {"": gone})
row(14, "expect 100-continue, too large", 413, "payload_too_large", {"": expecting})

# --- 3b. Content type and dangerous parsers

UNSUPPORTED = (415, "unsupported_media_type")
row(15, "no content type", *UNSUPPORTED, request(PNG))
row(16, "JSON that names a file", *UNSUPPORTED, text("application/json"))
row(17, "text that names a file", *UNSUPPORTED, text("text/plain"))
row(18, "JSON of base64", *UNSUPPORTED, text("application/json", b'{"image": "%s"}' % base64.b64encode(PNG)))


PICKLE = "application/vnd.bentoml+pickle"
SPELLINGS = {
    "mixed case": ("Application/VND.BentoML+Pickle",),
    "parameter": (f"{PICKLE}; a=b",),
    "leading space": (f"   {PICKLE}",),
    "leading tab": (f"\t{PICKLE}",),
    "quoted": (f'"{PICKLE}"',),
    "python": ("application/x-python-pickle",),
    "buffers": (PICKLE, "Buffer-Lengths: 1,2"),
    "after a comma": (f"image/x, {PICKLE}", "Buffer-Lengths: 1,2"),
}
RUNNER = ("Payload-Container: DefaultContainer", "Payload-Meta: {}", "Args-Number: 1", "Bento-Name: x")


def pickled(around: Surroundings) -> bytes:
    return pickle.dumps(Canary(around.canary))


def spelled(around: Surroundings) -> dict[str, bytes]:
    kinds = {name: text(kind, pickled(around), *headers) for name, (kind, *headers) in SPELLINGS.items()}
    del kinds["after a comma"]  # by its beginning an image: its bytes are then not
    return kinds


row(19, "pickle", *UNSUPPORTED, lambda around: text(PICKLE, pickled(around)))
row(20, "pickle by other names", *UNSUPPORTED, spelled)
row(21, "pickle for a runner", *UNSUPPORTED, lambda around: text(PICKLE, pickled(around), *RUNNER))
row(21, "pickle as an image", 415, "unsupported_image_format", lambda around: text("image/x", pickled(around), *RUNNER))
row(
    22,
    "form that names a URL",
    *UNSUPPORTED,
    lambda around: text("application/x-www-form-urlencoded", f"image={around.listener}".encode()),
)


def field(value: str) -> bytes:
    return raw_form(form(part(value.encode(), 'form-data; name="image"')))


row(23, "text field that names a URL", 400, "image_must_be_file", lambda around: field(around.listener))
URLS = ("file:///etc/hostname", "ftp://127.0.0.1/x", "http://[", "http://localhost/x", "/etc/hostname", "data:,x")
row(24, "text field that names other things", 400, "image_must_be_file", {url: field(url) for url in URLS})
row(25, "body that is a URL", *UNSUPPORTED, lambda around: text("text/plain", around.listener.encode()))
row(
    25,
    "file that is a URL",
    415,
    "unsupported_image_format",
    lambda around: {"raw": text("image/png", around.listener.encode()), "form": upload(around.listener.encode())},
)
# Raw bodies are accepted, whatever kind of image they say they are; their bytes decide.
KINDS = ("image/jpeg", "image/png", "image/svg+xml", "IMAGE/JPEG", "application/octet-stream")
row(26, "raw image", 200, None, {kind: text(kind, PNG) for kind in KINDS})
MULTIPARTS = ("multipart/mixed", "multipart/related", "multipart/form-datax")
row(
    27,
    "other multiparts",
    *UNSUPPORTED,
    {kind: raw_form(form(part(PNG)), f"{kind}; boundary=X") for kind in MULTIPARTS},
)
ENCODINGS = ("gzip", "br", "deflate", "gzip, identity", "GZIP")
row(
    28,
    "encoded",
    415,
    "content_encoding_not_supported",
    {e: text("image/png", PNG, f"Content-Encoding: {e}") for e in ENCODINGS},
)

# --- 3c. Multipart structure

MALFORMED = (400, "malformed_multipart")
IMAGE = part(PNG)
row(
    29,
    "no boundary",
    *MALFORMED,
    {k: raw_form(form(IMAGE), k) for k in ("multipart/form-data", "multipart/form-data; boundary=")},
)
row(30, "boundary not in the body", *MALFORMED, raw_form(form(IMAGE), "multipart/form-data; boundary=Y"))
row(31, "boundary of 257", *MALFORMED, raw_form(form(IMAGE), f"multipart/form-data; boundary={'Y' * 257}"))
row(
    32,
    "form cut off",
    *MALFORMED,
    {"at its end": raw_form(form(IMAGE, end=b"")), "within": raw_form(form(IMAGE)[:-2000])},
)
row(33, "empty body", 400, "missing_image", {"form": raw_form(b""), "raw": text("image/png", b"")})
row(34, "part without name", *MALFORMED, raw_form(form(part(PNG, 'form-data; filename="a"'), IMAGE)))
row(35, "image under another name", 400, "missing_image", upload(PNG, name="file"))
row(36, "two images", 400, "too_many_files", raw_form(form(IMAGE, IMAGE)))
row(37, "image and a field", 400, "unexpected_field", raw_form(form(IMAGE, part(b"1", 'form-data; name="x"'))))
MANY = {"fields": part(b"1", 'form-data; name="x"'), "files": part(b"1", 'form-data; name="image"; filename="a"')}
row(
    38,
    "1,001 parts",
    400,
    ("too_many_files", "missing_image"),
    {kind: raw_form(form(*[each] * 1001)) for kind, each in MANY.items()},
    seconds=0.1,
)
LONG = {"long": [f"X-Long: {'a' * 5000}"], "many": [f"X-{n}: a" for n in range(20)], "long name": ["X" * 5000 + ": a"]}
row(
    39,
    "part headers",
    *MALFORMED,
    {k: raw_form(form(part(PNG, 'form-data; name="image"; filename="a"', *h))) for k, h in LONG.items()},
)
LINES = b"\r\n" * (MIB // 2)
row(
    40,
    "1 MB of line ends around the form",
    (200, 400),
    (None, "malformed_multipart"),
    {"before": raw_form(LINES + form(IMAGE)), "after": raw_form(form(IMAGE) + LINES)},
    seconds=0.2,
)


def named(filename: str) -> bytes:
    return raw_form(form(part(PNG, f'form-data; name="image"; {filename}')))


NAMES = ("../../x-leaked", "/etc/x-leaked", "C:\\x-leaked", "x-leaked" * 40, "x-leaked\U0001f600", "")
row(41, "file names", 200, None, {name[:9]: named(f'filename="{name}"') for name in NAMES})
# RFC 7578 forbids filename* alone: the part is then no file.
BOTH = "filename=x-leaked; filename*=UTF-8''x-leaked%F0%9F%98%80"
row(41, "encoded file name", 200, None, named(BOTH))
row(41, "encoded file name alone", 400, "image_must_be_file", named("filename*=UTF-8''x-leaked"))
INJECTED = ("a\0b", "a\r\nX-Injected: 1", "a\nSet-Cookie: x-leaked", "a\rb")
row(
    42,
    "file names with line ends",
    (200, 400),
    (None, "malformed_multipart", "image_must_be_file"),
    {repr(name): named(f'filename="{name}"') for name in INJECTED},
)
# 415, not 422: the bytes are taken as they are, and are then of no accepted format.
CODED = part(base64.b64encode(PNG), 'form-data; name="image"; filename="a"', "Content-Transfer-Encoding: base64")
row(43, "part in base64", 415, "unsupported_image_format", raw_form(form(CODED)))
TEXT = part(b"x", 'form-data; name="image"')
row(
    44,
    "text and file",
    400,
    ("image_must_be_file", "too_many_files"),
    {"text": raw_form(form(TEXT, IMAGE)), "file": raw_form(form(IMAGE, TEXT))},
)

# --- 3d. Size

TOO_LARGE = (413, "payload_too_large")


def padded(size: int) -> bytes:
    return PNG + bytes(size - len(PNG))


row(45, "10 MiB", 200, None, lambda _: {"form": upload(padded(MAX_BYTES)), "raw": text("image/png", padded(MAX_BYTES))})
row(46, "10 MiB and a byte", *TOO_LARGE, lambda _: {"raw": raw(f"Content-Length: {MAX_BYTES + 1}", body=b"")})
row(46, "10 MiB and a byte in a form", *TOO_LARGE, lambda _: upload(padded(MAX_BYTES + 1)))
row(47, "11 MiB in chunks", *TOO_LARGE, lambda _: chunked([bytes(MIB)] * 11), mebibytes=14)


def longer_than_it_says() -> bytes:
    body = form(IMAGE)
    return request(body, FORM, length=len(body) // 2).replace(b"Connection: close\r\n", b"")


# Who answers first, the service or the HTTP library, which takes the rest of the body for another request, is chance.
row(48, "body longer than it says", 400, (None, "malformed_multipart"), longer_than_it_says())


def endless(kind: str, length: int | None) -> Callable[[str], Reply]:
    def send(address: str) -> Reply:
        if length:
            return exchange(address, [request(kind=kind, length=length), *[bytes(MIB)] * (length // MIB)])
        pieces = [b"%x\r\n%s\r\n" % (MIB, bytes(MIB))] * 400
        return exchange(address, [request(b"", kind, "Transfer-Encoding: chunked", length=None), *pieces])

    return send


HUGE = {"honest": endless("image/png", 400 * MIB), "chunked": endless("image/png", None), "form": endless(FORM, None)}
row(49, "400 MB", *TOO_LARGE, HUGE, mebibytes=14)
row(50, "empty file", 400, "empty_image", upload(b""))
