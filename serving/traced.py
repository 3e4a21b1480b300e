"""A span around every request, where BentoML's configuration asks for tracing."""

from collections.abc import Sequence

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving.api.routes import Route, RouteKind, RouteTable
from serving.tracing import Tracing, finished


class Traced:
    """An ASGI application, with a span for each request; none for probes, which come every few seconds.

    The span ends with the exchange: where the rest of a refused upload is read and dropped, after that.
    """

    def __init__(self, application: ASGIApp, tracing: Tracing, routes: Sequence[Route]) -> None:
        self._application = application
        self._tracing = tracing
        self._routes = RouteTable(routes)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http" or self._tracing.is_excluded(scope["path"]):
            await self._application(scope, receive, send)
            return
        route, _ = self._routes.find(scope["path"])
        if route and route.kind is RouteKind.PROBE:
            await self._application(scope, receive, send)
            return
        status = 0

        async def send_and_note(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        # A name from the table, as in the metrics.
        with self._tracing.request(scope, route.name if route else "other") as span:
            await self._application(scope, receive, send_and_note)
            finished(span, status, scope["state"]["request_id"])
