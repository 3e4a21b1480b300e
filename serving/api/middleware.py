"""What happens around every request: its id, the token, the count, the log, and the way out when the process ends."""

import asyncio
import hashlib
import logging
import random
import re
import signal
from collections.abc import Callable, Mapping
from time import perf_counter
from types import FrameType

from starlette.types import ASGIApp, Message, Receive, Scope, Send
from starlette.websockets import WebSocketClose

from serving.api.admission import Admission, Overloaded
from serving.api.bearer import BearerTokens
from serving.api.errors import RequestError, refusal
from serving.logs import FIELDS
from serving.metrics import Metrics
from serving.settings import Settings

# A child of BentoML's logger, so that it has the same level and destination.
log = logging.getLogger("bentoml.twinlens.requests")

REQUEST_ID = re.compile(r"[\w.:-]{1,64}", re.ASCII)
PROBES = frozenset({"/livez", "/readyz", "/ping", "/v2/health/live", "/v2/health/ready", "/v2/models/twinlens/ready"})
# The page says nothing of the model, and asks for the token: a browser has none before it is there.
PAGE = frozenset({"/", "/ui"})
METRICS = "/metrics"


class Gate:
    """An ASGI application around the service's own; `routes` gives the path of each endpoint, for the metrics.

    When no image more is let in, a POST is answered here, before it is read: a service that can answer a thousand
    images has to be able to refuse many thousands more beside them.
    """

    def __init__(
        self,
        app: ASGIApp,
        routes: Mapping[Callable[..., object], str],
        admission: Admission,
        metrics: Metrics,
        settings: Settings,
    ) -> None:
        self.draining = False
        self._app = app
        self._routes = routes
        self._paths = frozenset(routes.values())
        self._admission = admission
        self._metrics = metrics
        self._settings = settings
        self._tokens = BearerTokens(settings.token_file) if settings.token_file else None
        self._open_paths = PROBES | PAGE if settings.protect_metrics else PROBES | PAGE | {METRICS}
        self._under_way: set[asyncio.Task[object]] = set()
        self._empty = asyncio.Event()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request: by the application, or with a refusal."""
        if scope["type"] != "http":
            await WebSocketClose()(scope, receive, send)
            return
        start = perf_counter()
        request_id = scope["state"]["request_id"] = _request_id(scope)
        status = 0

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"].append((b"x-request-id", request_id.encode()))
            await send(message)

        task = asyncio.current_task()
        assert task is not None
        self._under_way.add(task)
        try:
            await (self._refusal(scope) or self._app)(scope, receive, send_with_id)
        except asyncio.CancelledError:
            if not self.draining or status:
                raise
            await refusal(RequestError(503, "shutting_down", "the service is ending"), scope)(
                scope, receive, send_with_id
            )
        finally:
            self._under_way.discard(task)
            if self.draining and not self._under_way:
                self._empty.set()
            self._record(scope, status, perf_counter() - start)

    def _refusal(self, scope: Scope) -> ASGIApp | None:
        path = scope["path"]
        if path in self._open_paths:
            return None
        if self._tokens is not None and not self._tokens.accept(_header(scope, b"authorization")):
            challenge = {"WWW-Authenticate": "Bearer"}
            return refusal(RequestError(401, "unauthorized", "a valid bearer token is needed", challenge), scope)
        if self.draining and path != METRICS:
            away = {"Retry-After": "1", "Connection": "close"}
            return refusal(RequestError(503, "shutting_down", "the service is ending; ask another", away), scope)
        if scope["method"] == "POST" and self._admission.full:
            return refusal(Overloaded(), scope)
        return None

    def _record(self, scope: Scope, status: int, seconds: float) -> None:
        route = self._route(scope)
        self._metrics.answered(route, status, seconds)
        code = scope["state"].get("code")
        if code not in (None, "not_found"):
            self._metrics.rejected(code)
        if scope["path"] in PROBES:
            return  # asked every few seconds, and told by the metrics
        if self._settings.log_requests or status >= 500 or seconds >= self._settings.slow_s:
            level = logging.ERROR if status >= 500 else logging.INFO
            log.log(level, "%s %s", scope["method"], status, extra={FIELDS: _fields(scope, route, status, seconds)})

    def _route(self, scope: Scope) -> str:
        """Never what a caller makes up, or everybody could add series to the metrics."""
        if "endpoint" in scope:
            return self._routes[scope["endpoint"]]
        path: str = scope["path"]  # of what was refused before anybody looked where it goes
        return path if path in self._paths else "other"

    async def drain(self, grace_s: float) -> None:
        """Take in nothing new and return when everything under way is answered, cut off after `grace_s` seconds."""
        self.draining = True
        if not self._under_way:
            return
        try:
            async with asyncio.timeout(grace_s):
                await self._empty.wait()
        except TimeoutError:
            log.error("%d requests were not answered within %g s", len(self._under_way), grace_s)
            for task in self._under_way:
                task.cancel()

    def drain_on_signals(self, grace_s: float) -> None:
        """SIGTERM and SIGINT drain before the server hears of them; a second signal does not wait."""
        loop = asyncio.get_running_loop()

        def on_signal(number: int, frame: FrameType | None) -> None:
            signal.signal(number, end[number])

            async def drain_and_end() -> None:
                await self.drain(grace_s)
                signal.raise_signal(number)

            loop.call_soon_threadsafe(lambda: self._tasks.append(loop.create_task(drain_and_end())))

        self._tasks: list[asyncio.Task[None]] = []
        end = {int(number): signal.signal(number, on_signal) for number in (signal.SIGTERM, signal.SIGINT)}


def _request_id(scope: Scope) -> str:
    """The caller's X-Request-ID when it is a plain one, else a new one."""
    given = _header(scope, b"x-request-id")
    return given if given and REQUEST_ID.fullmatch(given) else f"{random.getrandbits(128):032x}"


def _header(scope: Scope, name: bytes) -> str | None:
    return next((value.decode("latin-1") for key, value in scope["headers"] if key == name), None)


def _fields(scope: Scope, route: str, status: int, seconds: float) -> dict[str, object]:
    """What a line says of a request: never a path or a file name, which are the caller's to choose."""
    state = scope["state"]
    fields: dict[str, object] = {
        "request_id": state["request_id"],
        "route": route,
        "status": status,
        "seconds": round(seconds, 6),
    }
    if images := state.get("images"):
        fields["images"] = [hashlib.sha256(image).hexdigest()[:12] for image in images]
    if code := state.get("code"):
        fields["code"] = code
    fields.update(state.get("fields", {}))
    return fields
