"""Spans of requests and of their stages, for OpenTelemetry: https://opentelemetry.io/docs/specs/semconv/http/http-spans/."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import perf_counter

from opentelemetry import propagate, trace
from opentelemetry.trace import Span, SpanKind, Status, StatusCode, TracerProvider
from starlette.types import Scope

NS = 1_000_000_000


class Tracing:
    """Makes a span of each request, whose parent is the caller's `traceparent`, and spans of its stages below it."""

    def __init__(self, provider: TracerProvider, is_excluded: Callable[[str], bool] = lambda path: False) -> None:
        """`is_excluded` gets the path of a request."""
        self._tracer = provider.get_tracer("twinlens")
        self.is_excluded = is_excluded

    @contextmanager
    def request(self, scope: Scope, route: str) -> Iterator[Span]:
        """The span of a request, and the parent of the spans that are made within; `route` is the route's name.

        The caller's path and file names are not in it.
        """
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        with self._tracer.start_as_current_span(
            f"{scope['method']} {route}",
            context=propagate.extract(headers),
            kind=SpanKind.SERVER,
            attributes={"http.request.method": scope["method"], "http.route": route},
        ) as span:
            yield span

    def decoded(self, start: float) -> None:
        """A span `decode` from `start`, in seconds of `perf_counter`, to now."""
        self._add("decode", start, perf_counter())

    def ran(self, since: float, start: float, end: float) -> None:
        """Spans of an image that waited from `since`, in a batch from `start` to `end`: `queue` and `infer`."""
        self._add("queue", since, start)
        self._add("infer", start, end)

    def _add(self, name: str, start: float, end: float) -> None:
        if not trace.get_current_span().get_span_context().is_valid:
            return  # a path that is excluded: its stages would be traces of their own
        now_ns, now = time.time_ns(), perf_counter()
        began = now_ns - int((now - start) * NS)
        self._tracer.start_span(name, start_time=began).end(began + int((end - start) * NS))


def finished(span: Span, status: int, request_id: str) -> None:
    """Add what is known at the end of a request; a status from 500 marks the span as an error."""
    span.set_attributes({"http.response.status_code": status, "twinlens.request_id": request_id})
    if status >= 500:
        span.set_status(Status(StatusCode.ERROR))
