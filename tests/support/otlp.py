"""A collector of spans: a web server that takes OTLP over HTTP and keeps what it decodes."""

import gzip
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any


@dataclass(frozen=True)
class Span:
    """What a test asks of a span; ids are lower-case hexadecimal, times in nanoseconds since 1970."""

    name: str
    trace: str
    id: str
    parent: str
    start: int
    end: int
    attributes: dict[str, Any]
    failed: bool
    service: str


@dataclass
class Collector:
    spans: list[Span] = field(default_factory=list)
    address: str = ""


@contextmanager
def collector() -> Iterator[Collector]:
    """Spans that are sent to `address` are in `spans`."""
    kept = Collector()
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(_Handler, kept)) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        kept.address = f"http://127.0.0.1:{server.server_port}/v1/traces"
        yield kept
        server.shutdown()


def decoded(body: bytes) -> list[Span]:
    """The spans of an ExportTraceServiceRequest."""
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

    spans = []
    for group in ExportTraceServiceRequest.FromString(body).resource_spans:
        resource = {each.key: each.value.string_value for each in group.resource.attributes}
        spans += [_as_span(span, resource["service.name"]) for scope in group.scope_spans for span in scope.spans]
    return spans


def _as_span(span: Any, service: str) -> Span:
    return Span(
        name=span.name,
        trace=span.trace_id.hex(),
        id=span.span_id.hex(),
        parent=span.parent_span_id.hex(),
        start=span.start_time_unix_nano,
        end=span.end_time_unix_nano,
        attributes={each.key: each.value.int_value or each.value.string_value for each in span.attributes},
        failed=span.status.code == 2,
        service=service,
    )


class _Handler(BaseHTTPRequestHandler):
    def __init__(self, kept: Collector, *arguments: Any) -> None:
        self._kept = kept
        super().__init__(*arguments)

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.headers.get("Content-Encoding") == "gzip":
            body = gzip.decompress(body)
        self._kept.spans += decoded(body)
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *arguments: Any) -> None:
        pass
