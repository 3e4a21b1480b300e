"""The BentoML service: HTTP in, a plain call, HTTP out. `bentoml serve` in the project's root starts it."""

import asyncio
import dataclasses
import logging
import multiprocessing
import re
import uuid
from http import HTTPStatus
from importlib.resources import files
from pathlib import Path

import bentoml
import cv2
import yaml
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, RedirectResponse, Response
from starlette.routing import Route

from serving.batching import QueueFull
from serving.contract import ImageError, ModelCard
from serving.explain import Explainer, Explanation
from serving.heat import as_json, as_png, overlay
from serving.metrics import Metrics
from serving.model import Classifier, ModelRefused, open_model
from serving.page import Page
from serving.predictor import InvalidOutput, Prediction, Predictor
from serving.reload import Reloader
from serving.settings import Settings
from serving.upload import RequestError, read_files

# A child of BentoML's logger, so that it has the same format and destination.
log = logging.getLogger("bentoml.twinlens")

IMAGE_STATUS = {"empty_image": 400, "payload_too_large": 413, "unsupported_image_format": 415}  # every other code: 422
# A batch may carry this many times the bytes of one file; its number of files is bounded by TWINLENS_MAX_BATCH.
BATCH_BODY_FILES = 4
RETRY_AFTER_S = {429: "1", 503: "5"}
REQUEST_ID = re.compile(r"[\w.:-]{1,64}", re.ASCII)


async def predict(request: Request) -> Response:
    top_k = _top_k(request)
    [data] = await read_files(request, "image", max_files=1, max_bytes=settings.max_bytes, timeout_s=settings.timeout_s)
    return JSONResponse(dataclasses.asdict(await _predictor(request).predict(data, top_k)))


async def predict_batch(request: Request) -> Response:
    top_k = _top_k(request)
    files = await read_files(
        request,
        "images",
        max_files=settings.max_batch,
        max_bytes=settings.max_bytes * BATCH_BODY_FILES,
        timeout_s=settings.timeout_s,
    )
    predictor = _predictor(request)
    answers = await asyncio.gather(*(predictor.predict(data, top_k) for data in files), return_exceptions=True)
    return JSONResponse({"results": [_batch_element(request, answer) for answer in answers]})


async def explain(request: Request) -> Response:
    predictor = _predictor(request)
    label = _label(request, predictor.card.classes)
    draw = _explanation_as_png if _wants_png(request) else _explanation_as_json
    [data] = await read_files(request, "image", max_files=1, max_bytes=settings.max_bytes, timeout_s=settings.timeout_s)
    explainer: Explainer = request.app.state.explainer
    return await explainer.explain(predictor, data, label, draw)


async def model_card(request: Request) -> Response:
    predictor = _predictor(request)
    card: ModelCard = dataclasses.replace(predictor.card, goldens=())
    return Response(card.to_json(), 200, {"ETag": f'"{predictor.classifier.digest}"'}, "application/json")


async def page(request: Request) -> Response:
    document: Page = request.app.state.page
    return HTMLResponse(document.html, headers=document.headers)


async def docs(request: Request) -> Response:
    return JSONResponse(request.app.state.openapi)


async def home(request: Request) -> Response:
    return RedirectResponse("ui")


async def no_route(request: Request) -> Response:
    allowed = [method for route in ROUTES if route.path == request.url.path for method in sorted(route.methods or ())]
    raise HTTPException(405, headers={"Allow": ", ".join(allowed)}) if allowed else HTTPException(404)


def serve(classifier: Classifier) -> None:
    """Answer with this model from the next request on; requests under way are finished by the one before it."""
    app.state.metrics.serves(classifier)
    app.state.predictor = Predictor(classifier, settings, app.state.metrics)


def _predictor(request: Request) -> Predictor:
    predictor: Predictor | None = request.app.state.predictor
    if predictor is None:
        raise RequestError(503, "no_model", "there is no model yet; the service answers as soon as one is published")
    return predictor


def _top_k(request: Request) -> int | None:
    text = request.query_params.get("top_k")
    if text is None:
        return None
    if not (text.isascii() and text.isdecimal() and int(text[:9]) > 0):
        raise RequestError(400, "invalid_top_k", f"top_k must be a whole number above 0, not {text[:40]!r}")
    return int(text[:9])


def _label(request: Request, classes: tuple[str, ...]) -> str | None:
    label = request.query_params.get("label")
    if label is not None and label not in classes:
        raise RequestError(
            400, "unknown_label", f"{label[:40]!r} is no class of this model; see /model for its classes"
        )
    return label


def _wants_png(request: Request) -> bool:
    given = request.query_params.get("format")
    if given not in (None, "png", "json"):
        raise RequestError(400, "invalid_format", f"format must be png or json, not {given[:40]!r}")
    accepted = request.headers.get("accept", "")
    return given == "png" or (given is None and "image/png" in accepted and "json" not in accepted)


def _explanation_as_png(explanation: Explanation) -> Response:
    return Response(as_png(overlay(explanation)), media_type="image/png")


def _explanation_as_json(explanation: Explanation) -> Response:
    return JSONResponse(as_json(explanation))


def _batch_element(request: Request, answer: Prediction | BaseException) -> dict[str, object]:
    if isinstance(answer, Prediction):
        return dataclasses.asdict(answer)
    if isinstance(answer, Exception):
        return _describe(request, answer)[1]
    raise answer


def _describe(request: Request, error: Exception) -> tuple[int, dict[str, object]]:
    """The HTTP status and the one envelope of an error; counts it, and logs what is ours to mend."""
    match error:
        case ImageError():
            status, code, message = IMAGE_STATUS.get(error.code, 422), error.code, str(error)
        case RequestError():
            status, code, message = error.status, error.code, str(error)
        case QueueFull():
            status, code, message = 429, "too_many_requests", "the service is working at its limit; try again shortly"
        case TimeoutError():
            status, code, message = 504, "deadline_exceeded", f"no answer within {settings.timeout_s:g} s"
        case InvalidOutput():
            status, code, message = 500, "model_output_invalid", str(error)
        case HTTPException():
            phrase = HTTPStatus(error.status_code).phrase
            status, code, message = error.status_code, phrase.lower().replace(" ", "_"), f"{phrase}: {request.url.path}"
        case ClientDisconnect():
            status, code, message = 400, "client_disconnected", "the client closed the connection"
        case _:
            status, code, message = 500, "internal_error", "an error of this service; its log holds the details"
    request_id = _request_id(request)
    if status >= 500 and not isinstance(error, RequestError):
        log.error("%s %s: %s", request_id, code, message, exc_info=error)
    if code != "not_found":
        request.app.state.metrics.rejected(code)
    return status, {"error": {"code": code, "message": message, "request_id": request_id}}


def _request_id(request: Request) -> str:
    """The caller's X-Request-ID when it is a plain one, else a new one; the same throughout one request."""
    if not hasattr(request.state, "request_id"):
        given = request.headers.get("x-request-id", "")
        request.state.request_id = given if REQUEST_ID.fullmatch(given) else uuid.uuid4().hex
    request_id: str = request.state.request_id
    return request_id


async def _refuse(request: Request, error: Exception) -> Response:
    status, envelope = _describe(request, error)
    headers = dict(getattr(error, "headers", None) or {})
    if status in RETRY_AFTER_S:
        headers["Retry-After"] = RETRY_AFTER_S[status]
    return JSONResponse(envelope, status, {**headers, "X-Request-ID": _request_id(request)})


METHODS = ["GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE"]
HANDLED = (
    ImageError,
    RequestError,
    QueueFull,
    TimeoutError,
    InvalidOutput,
    HTTPException,
    ClientDisconnect,
    Exception,
)
ROUTES = [
    Route("/predict", predict, methods=["POST"]),
    Route("/predict_batch", predict_batch, methods=["POST"]),
    Route("/explain", explain, methods=["POST"]),
    Route("/model", model_card),
    Route("/ui", page),
    Route("/docs.json", docs),
    Route("/", home),
]
settings = Settings.from_env()
# The last route answers for everything that BentoML's own routes and ours leave, so that every error has one shape.
app = Starlette(
    routes=[*ROUTES, Route("/{path:path}", no_route, methods=METHODS)],
    exception_handlers=dict.fromkeys(HANDLED, _refuse),
)


@bentoml.service(name="twinlens", workers=settings.workers, logging={"access": {"enabled": False}})
@bentoml.asgi_app(app)
class Twinlens:
    """An image classifier that proves, before it is ready, that it answers as it did when it was evaluated."""

    def __init__(self) -> None:
        cv2.setNumThreads(1)
        app.state.metrics = Metrics()
        app.state.explainer = Explainer(settings, app.state.metrics)
        app.state.page = Page.load()
        app.state.predictor = None
        self._reloader = Reloader(settings.model, _open, serve, app.state.metrics.reloaded)
        self._reloader.start()
        app.state.openapi = yaml.safe_load(files("serving").joinpath("openapi.yaml").read_text())

    @bentoml.on_startup  # type: ignore[untyped-decorator]
    async def watch(self) -> None:
        """From now on, follow the model file."""
        if settings.reload_s:
            self._watching = asyncio.create_task(self._reloader.watch(settings.reload_s))

    async def __is_ready__(self) -> bool:
        """Whether there is a model, which has proved itself; BentoML's /readyz asks."""
        return app.state.predictor is not None

    @bentoml.on_deployment  # type: ignore[untyped-decorator]
    @staticmethod
    def check() -> None:
        """Once, before any worker starts: a model that is refused ends the start with the reason; none is waited for.

        In a child process, so that the supervisor keeps neither the model's memory nor a CUDA context.
        """
        child = multiprocessing.get_context("fork").Process(target=_check_model)
        child.start()
        child.join()
        if child.exitcode:
            raise SystemExit(child.exitcode)


def _open(path: Path) -> Classifier:
    return open_model(path, require_gpu=settings.require_gpu)


def _check_model() -> None:
    if not settings.model.exists():
        missing = f"{settings.model}: no model yet; `python -m training` makes one"
        if not settings.reload_s:
            raise SystemExit(missing)
        log.warning("%s, and it is served as soon as it is there", missing)
        return
    try:
        _open(settings.model)
    except ModelRefused as error:
        raise SystemExit(f"not ready: {error}") from error
