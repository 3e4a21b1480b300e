"""From a request to its endpoint, by the shortest way."""

from collections.abc import Sequence
from types import SimpleNamespace

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.routing import Match, Route
from starlette.types import Receive, Scope, Send

from serving.api.errors import refusal


class Dispatch:
    """An ASGI application of Starlette's routes, requests and responses; endpoints find `state` as `request.app.state`.

    Starlette's own application, with its search through patterns and three layers that handle exceptions, costs a
    small image as much as naming its answer. Here a path without parameters is looked up, those with parameters are
    tried in their order, and whatever an endpoint raises becomes an answer in one place.
    """

    def __init__(self, routes: Sequence[Route]) -> None:
        self.state = SimpleNamespace()
        self._routes = routes
        self._fixed = {
            (method, route.path): route
            for route in routes
            if not route.param_convertors
            for method in route.methods or ()
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request: with what its endpoint returns, or with what it raises."""
        scope["app"] = self
        try:
            route = self._fixed.get((scope["method"], scope["path"])) or self._search(scope)
            scope["endpoint"] = route.endpoint
            response = await route.endpoint(Request(scope, receive, send))
        except Exception as error:  # refusal() tells apart what is ours to mend, and logs it
            response = refusal(error, scope)
        await response(scope, receive, send)

    def _search(self, scope: Scope) -> Route:
        allowed: set[str] = set()
        for route in self._routes:
            match, found = route.matches(scope)
            if match is Match.FULL:
                scope.update(found)
                return route
            if match is Match.PARTIAL:
                allowed |= route.methods or set()
        raise HTTPException(405, headers={"Allow": ", ".join(sorted(allowed))}) if allowed else HTTPException(404)
