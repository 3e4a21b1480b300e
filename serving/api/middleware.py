"""What happens around every request: its id, the token, admission, metrics and log, and draining at shutdown."""

import asyncio
import hashlib
import logging
import random
import re
import signal
from time import perf_counter
from types import FrameType

from starlette.requests import Request
from starlette.types import Message, Receive, Scope, Send
from starlette.websockets import WebSocketClose

from serving.api.bearer import BearerTokens
from serving.api.errors import RequestError
from serving.api.linger import Exchange, Lingering
from serving.api.routes import Route, RouteKind, RouteTable, refusal, respond, routes_of
from serving.api.state import ServiceState
from serving.inference.batching import Overloaded
from serving.inference.prediction import InvalidOutput
from serving.logs import FIELDS

# A child of BentoML's logger, so that it has the same level and destination.
log = logging.getLogger("bentoml.twinlens.requests")

ABOUT_THE_INPUT = frozenset({400, 408, 413, 415, 422})
"""Statuses that speak of what the client sent, and not of its token, its address or the state of the service."""
LAST_REFUSALS_S = 1.0
"""Seconds in which requests that a shutdown cuts off are answered with 503."""
ANY = frozenset({"*"})
LOOPBACK = frozenset({"localhost", "127.0.0.1", "[::1]"})
"""The hosts of requests to a service that only this machine can reach. A web page of another name, whose owner has its
name resolve to 127.0.0.1 (DNS rebinding), sends that name."""
REQUEST_ID = re.compile(r"[\w.:-]{1,64}", re.ASCII)


class Middleware:
    """The ASGI application of a worker, around its routes.

    A POST is refused here, before it is read, while no image more is admitted: a service that answers a thousand
    images a second must be able to refuse many thousands more.
    """

    def __init__(self, state: ServiceState, hosts: frozenset[str] = ANY) -> None:
        """`hosts` are those of the address at which the service listens, where TWINLENS_HOSTS names none."""
        settings = state.settings
        self._state = state
        self._hosts = settings.hosts or hosts
        # Prometheus scrapes a pod by its address, whatever names its clients use.
        self._of_any_host = {RouteKind.PROBE, RouteKind.METRICS} if settings.hosts else {RouteKind.PROBE}
        self._routes = RouteTable(routes_of(settings))
        self._tokens = BearerTokens(settings.token_file) if settings.token_file else None
        self._unprotected = (
            {RouteKind.PROBE, RouteKind.PAGE} if settings.protect_metrics else set(RouteKind) - {RouteKind.API}
        )
        self._lingering = Lingering()
        self._running: set[asyncio.Task[object]] = set()
        self._all_answered = asyncio.Event()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request: by its route's endpoint, or with a refusal."""
        if scope["type"] != "http":
            await WebSocketClose()(scope, receive, send)
            return
        start = perf_counter()
        request_id = scope["state"]["request_id"] = _request_id(scope)
        route, scope["path_params"] = self._routes.find(scope["path"])
        exchange = Exchange(scope, receive, send)
        status = 0

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"].append((b"x-request-id", request_id.encode()))
            await exchange.send(message)

        task = asyncio.current_task()
        assert task is not None
        self._running.add(task)
        readiness = self._state.readiness
        try:
            error = self._reason_to_refuse(scope, route)
            response = (
                refusal(error, scope) if error else await respond(Request(scope, exchange.receive), route, self._state)
            )
            await response(scope, receive, send_with_id)
        except asyncio.CancelledError:
            if not readiness.draining or status:
                raise
            cut_off = RequestError(503, "shutting_down", "the service is shutting down")
            await refusal(cut_off, scope)(scope, receive, send_with_id)
        finally:
            self._running.discard(task)
            if readiness.draining and not self._running:
                self._all_answered.set()
            end = perf_counter()
            self._state.metrics.requests.answered(_name(route), status, end - max(start, exchange.read_at))
            self._record(scope, route, status, end - start)
        await exchange.finish(self._lingering)

    def _reason_to_refuse(self, scope: Scope, route: Route | None) -> Exception | None:
        kind = route.kind if route else RouteKind.API
        if not self._hosts >= ANY and kind not in self._of_any_host and not self._hosts >= _hosts(scope):
            return RequestError(421, "misdirected_request", "this service has another name; see TWINLENS_HOSTS")
        if kind in self._unprotected:
            return None
        if self._tokens is not None and not self._tokens.accept(_header(scope, b"authorization")):
            return RequestError(401, "unauthorized", "a valid bearer token is needed", {"WWW-Authenticate": "Bearer"})
        if self._state.readiness.draining and kind is not RouteKind.METRICS:
            elsewhere = {"Retry-After": "1", "Connection": "close"}
            return RequestError(503, "shutting_down", "the service is shutting down; ask another replica", elsewhere)
        if scope["method"] == "POST" and self._state.admission.full:
            return Overloaded()
        return None

    def _record(self, scope: Scope, route: Route | None, status: int, seconds: float) -> None:
        metrics, settings = self._state.metrics.requests, self._state.settings
        if route and route.kind is RouteKind.PROBE:
            return  # probes come every few seconds; the metrics count them
        code = scope["state"].get("code")
        if status in ABOUT_THE_INPUT or code == InvalidOutput.code:
            metrics.rejected(code)
        if settings.log_requests or status >= 500 or seconds >= settings.slow_s:
            level = logging.ERROR if status >= 500 else logging.INFO
            fields = _fields(scope, route, status, seconds)
            if settings.log_requests:
                fields |= _result(scope)
            log.log(level, "%s %s", scope["method"], status, extra={FIELDS: fields})

    async def drain(self, grace_s: float) -> None:
        """Refuse new requests; return when all running ones are answered, or cancelled after `grace_s` seconds.

        Those that are cancelled are answered with 503.
        """
        self._state.readiness.draining = True
        if not self._running:
            return
        try:
            async with asyncio.timeout(grace_s):
                await self._all_answered.wait()
        except TimeoutError:
            log.error("%d requests were not answered within %g s", len(self._running), grace_s)
            for task in (running := set(self._running)):
                task.cancel()
            if running:
                await asyncio.wait(running, timeout=LAST_REFUSALS_S)

    def drain_on_signals(self, grace_s: float) -> None:
        """Drain at SIGTERM or SIGINT, before the server handles the signal; a second signal does not wait."""
        loop = asyncio.get_running_loop()

        def on_signal(number: int, frame: FrameType | None) -> None:
            signal.signal(number, handlers[number])

            async def drain_and_end() -> None:
                await self.drain(grace_s)
                signal.raise_signal(number)

            loop.call_soon_threadsafe(lambda: self._draining.append(loop.create_task(drain_and_end())))

        self._draining: list[asyncio.Task[None]] = []
        handlers = {int(number): signal.signal(number, on_signal) for number in (signal.SIGTERM, signal.SIGINT)}


def _request_id(scope: Scope) -> str:
    """The caller's X-Request-ID if it has the form of REQUEST_ID, else a new one."""
    sent = _header(scope, b"x-request-id")
    return sent if sent and REQUEST_ID.fullmatch(sent) else f"{random.getrandbits(128):032x}"


def _header(scope: Scope, name: bytes) -> str | None:
    return next((value.decode("latin-1") for key, value in scope["headers"] if key == name), None)


def _hosts(scope: Scope) -> set[str]:
    """The names in the Host headers without their ports and final dots; none where there is no such header."""
    values = [value.decode("latin-1").lower() for key, value in scope["headers"] if key == b"host"]
    return {host if host.endswith("]") else (host.rpartition(":")[0] or host).removesuffix(".") for host in values}


def _name(route: Route | None) -> str:
    """A name from the table, never a path from a caller, who could otherwise add any number of series."""
    return route.name if route else "other"


def _fields(scope: Scope, route: Route | None, status: int, seconds: float) -> dict[str, object]:
    """The fields of a request's log line; never its path or file names, which the caller chooses."""
    state = scope["state"]
    fields: dict[str, object] = {
        "request_id": state["request_id"],
        "route": _name(route),
        "status": status,
        "seconds": round(seconds, 6),
    }
    if code := state.get("code"):
        fields["code"] = code
    return fields


def _result(scope: Scope) -> dict[str, object]:
    """Which images a request had, by their digests, and what the model answered: for TWINLENS_LOG_REQUESTS alone."""
    state = scope["state"]
    images = [hashlib.sha256(image).hexdigest()[:12] for image in state.get("images", ())]
    answer: dict[str, object] = state.get("fields", {})
    return ({"images": images} if images else {}) | answer
