"""The one shape of every error: `{"error": {"code", "message", "request_id"}}` with the right status."""

import logging
from collections.abc import Mapping
from http import HTTPStatus

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import Scope

from serving.api.admission import Overloaded
from serving.api.json_response import JSONResponse
from serving.contract.image_header import ImageError
from serving.inference.prediction import InvalidOutput
from serving.logs import FIELDS

log = logging.getLogger("bentoml.twinlens")

OPEN_INFERENCE = "/v2"
"""Below this path errors are `{"error": message}`, as that protocol has them."""
IMAGE_STATUS = {"empty_image": 400, "payload_too_large": 413, "unsupported_image_format": 415}  # every other code: 422


class RequestError(ValueError):
    """A request this service refuses: the HTTP `status`, a `code` for programs, a sentence for people."""

    def __init__(self, status: int, code: str, message: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.headers = headers or {}


def describe(error: Exception) -> RequestError:
    """Any error as one that a caller may see: nothing of ours is in its message."""
    match error:
        case RequestError():
            described = error
        case ImageError():
            described = RequestError(IMAGE_STATUS.get(error.code, 422), error.code, str(error))
        case Overloaded():
            message = "the service is working at its limit; try again shortly"
            described = RequestError(429, "too_many_requests", message, {"Retry-After": "1"})
        case InvalidOutput():
            described = RequestError(500, error.code, str(error))
        case MemoryError():
            message = "the service has too little memory for this now; try again shortly"
            described = RequestError(503, "out_of_memory", message, {"Retry-After": "5"})
        case ClientDisconnect():
            described = RequestError(499, "client_disconnected", "the client closed the connection")
        case HTTPException():
            phrase = HTTPStatus(error.status_code).phrase
            described = RequestError(error.status_code, phrase.lower().replace(" ", "_"), phrase, error.headers)
        case _:
            described = RequestError(500, "internal_error", "an error of this service; its log holds the details")
    return described


def envelope(error: RequestError, request_id: str) -> dict[str, object]:
    """The body of an error."""
    return {"error": {"code": error.code, "message": str(error), "request_id": request_id}}


def refusal(error: Exception, scope: Scope) -> JSONResponse:
    """The answer to a request that ended in `error`; what is ours to mend is logged."""
    described = describe(error)
    scope["state"]["code"] = described.code
    request_id: str = scope["state"]["request_id"]
    if described.status >= 500 and described is not error:
        log.error("%s", described, exc_info=error, extra={FIELDS: {"request_id": request_id, "code": described.code}})
    in_protocol = scope["path"].startswith(OPEN_INFERENCE)
    body = {"error": str(described)} if in_protocol else envelope(described, request_id)
    return JSONResponse(body, described.status, dict(described.headers))
