"""What a request may count on: a process that is alive, and a model that answers."""

from starlette.requests import Request

from serving.api.errors import RequestError
from serving.inference.predictor import Predictor


def current_predictor(request: Request) -> Predictor:
    """What answers now. Raises RequestError (503) before there is a model."""
    predictor: Predictor | None = request.app.state.predictor
    if predictor is None:
        waiting = "there is no model yet; the service answers as soon as one is published"
        raise RequestError(503, "no_model", waiting, {"Retry-After": "5"})
    return predictor


def check_alive(request: Request) -> None:
    """Not alive is what only a restart mends: a model that fails again and again. Raises RequestError (503)."""
    predictor: Predictor | None = request.app.state.predictor
    if predictor is not None and not predictor.alive:
        raise RequestError(503, "model_lost", "the model has failed several times in a row")


def check_ready(request: Request) -> None:
    """Raises RequestError (503) while new requests are better sent elsewhere."""
    if request.app.state.gate.draining:
        raise RequestError(503, "shutting_down", "the service is ending")
    current_predictor(request)
    check_alive(request)
