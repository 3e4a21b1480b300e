"""Errors as callers see them: `{"error": {"code", "message", "request_id"}}` with the right status."""

import logging
from collections.abc import Mapping
from http import HTTPStatus

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from serving.contract.formats.image_header import ImageError
from serving.inference.batching import Overloaded
from serving.inference.prediction import InvalidOutput
from serving.inference.similar import NoTrainingImages
from serving.logs import FIELDS

log = logging.getLogger("bentoml.twinlens")

IMAGE_STATUS = {"empty_image": 400, "payload_too_large": 413, "unsupported_image_format": 415}  # every other code: 422


class RequestError(ValueError):
    """A request that this service refuses: the HTTP `status`, a `code` for programs, a sentence for people."""

    def __init__(self, status: int, code: str, message: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.headers = headers or {}


def as_request_error(error: Exception) -> RequestError:
    """Any error as one that a caller may see: its message holds nothing internal."""
    match error:
        case RequestError():
            public = error
        case ImageError():
            public = RequestError(IMAGE_STATUS.get(error.code, 422), error.code, str(error))
        case Overloaded():
            message = "the service is working at its limit; try again shortly"
            public = RequestError(429, "too_many_requests", message, {"Retry-After": "1"})
        case NoTrainingImages():
            public = RequestError(404, "no_training_images", str(error))
        case InvalidOutput():
            public = RequestError(500, error.code, str(error))
        case MemoryError():
            message = "the service has too little memory for this now; try again shortly"
            public = RequestError(503, "out_of_memory", message, {"Retry-After": "5"})
        case ClientDisconnect():
            public = RequestError(499, "client_disconnected", "the client closed the connection")
        case HTTPException():
            phrase = HTTPStatus(error.status_code).phrase
            public = RequestError(error.status_code, phrase.lower().replace(" ", "_"), error.detail, error.headers)
        case _:
            public = RequestError(500, "internal_error", "an error of this service; its log holds the details")
    return public


def log_error(error: Exception, public: RequestError, request_id: str) -> None:
    """Log an error of the service itself (5xx), unless it was raised as the RequestError that the caller sees."""
    if public.status >= 500 and public is not error:
        log.error("%s", public, exc_info=error, extra={FIELDS: {"request_id": request_id, "code": public.code}})


def error_body(error: RequestError, request_id: str) -> dict[str, object]:
    """The JSON body of an error."""
    return {"error": {"code": error.code, "message": str(error), "request_id": request_id}}
