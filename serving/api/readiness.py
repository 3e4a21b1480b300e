"""Whether a worker can answer requests: the process is healthy, a model answers, and no shutdown has begun."""

from serving.api.errors import RequestError
from serving.inference.predictor import Predictor
from serving.metrics import FetchOutcome

NO_MODEL = "there is no model yet; the service answers as soon as one is published"
NOT_FETCHED: dict[FetchOutcome, str] = {
    "missing": "there is no model yet: its URL leads to no object; the service answers as soon as there is one",
    "failed": "there is no model yet: its object cannot be read, the log says why; it is tried again",
}
"""Without the URL, which clients need not know."""


class Readiness:
    """The state behind the probes; `predictor` changes with each reload, `draining` once, when a shutdown begins."""

    def __init__(self) -> None:
        self.predictor: Predictor | None = None
        self.draining = False
        self._waiting = NO_MODEL

    def polled(self, outcome: FetchOutcome) -> None:
        """Say why there is no model yet, if the last poll of its object explains it."""
        self._waiting = NOT_FETCHED.get(outcome, NO_MODEL)

    def current_predictor(self) -> Predictor:
        """The predictor that answers now. Raises RequestError (503) before there is a model."""
        if self.predictor is None:
            raise RequestError(503, "no_model", self._waiting, {"Retry-After": "5"})
        return self.predictor

    @property
    def alive(self) -> bool:
        """False when only a restart helps: the model failed several times in a row, or a run of it hangs."""
        return self.predictor is None or self.predictor.alive

    def check_alive(self) -> None:
        """Raises RequestError (503) when only a restart helps."""
        if not self.alive:
            raise RequestError(503, "model_lost", "the model has failed several times in a row, or does not answer")

    def check_ready(self) -> None:
        """Raises RequestError (503) while another replica should get new requests."""
        if self.draining:
            raise RequestError(503, "shutting_down", "the service is shutting down")
        self.current_predictor()
        self.check_alive()
