"""What each route does: HTTP in, a plain call, HTTP out."""

import asyncio
import dataclasses

from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.routing import Route

from serving.api import open_inference
from serving.api.admission import Admission, Place
from serving.api.errors import RequestError, describe, envelope
from serving.api.json_response import JSONResponse
from serving.api.readiness import check_alive, check_ready, current_predictor
from serving.api.ui import Page
from serving.api.upload import Limits, read_files
from serving.api.waiting import while_awaited
from serving.contract.card import ModelCard
from serving.inference.heatmap import as_json, as_png, overlay
from serving.inference.occlusion import Explainer, Explanation
from serving.inference.prediction import Prediction
from serving.metrics import exposition
from serving.settings import Settings

# A batch may carry this many times the bytes of one file; its number of files is bounded by TWINLENS_MAX_BATCH.
BATCH_BODY_FILES = 4


async def predict(request: Request) -> Response:
    top_k = _top_k(request)
    predictor = current_predictor(request)
    with _admission(request).place() as place:
        [data] = await _files(request, "image", place)
        place.enter(1)
        prediction = await while_awaited(request, predictor.predict(data, top_k), _settings(request).timeout_s)
    request.state.fields = {"label": prediction.label, "confidence": prediction.confidence}
    return JSONResponse(vars(prediction))


async def predict_batch(request: Request) -> Response:
    top_k = _top_k(request)
    predictor = current_predictor(request)
    with _admission(request).place() as place:
        data = await _files(request, "images", place, most=_settings(request).max_batch)
        place.enter(len(data))
        answering = asyncio.gather(*(predictor.predict(image, top_k) for image in data), return_exceptions=True)
        answers = await while_awaited(request, answering, _settings(request).timeout_s)
    return JSONResponse({"results": [_batch_element(request, answer) for answer in answers]})


async def explain(request: Request) -> Response:
    predictor = current_predictor(request)
    label = _label(request, predictor.card.classes)
    draw = _explanation_as_png if _wants_png(request) else _explanation_as_json
    explainer: Explainer = request.app.state.explainer
    with _admission(request).place() as place:
        [data] = await _files(request, "image", place)
        explaining = explainer.explain(predictor, data, label, draw)
        return await while_awaited(request, explaining, _settings(request).timeout_s)


async def model_card(request: Request) -> Response:
    predictor = current_predictor(request)
    card: ModelCard = dataclasses.replace(predictor.card, goldens=())
    return Response(card.to_json(), 200, {"ETag": f'"{predictor.classifier.digest}"'}, "application/json")


async def page(request: Request) -> Response:
    document: Page = request.app.state.page
    return HTMLResponse(document.html, headers=document.headers)


async def livez(request: Request) -> Response:
    check_alive(request)
    return Response("\n", media_type="text/plain")


async def readyz(request: Request) -> Response:
    check_ready(request)
    return Response("\n", media_type="text/plain")


async def metrics(request: Request) -> Response:
    return Response(await asyncio.to_thread(exposition), media_type="text/plain; version=0.0.4")


async def docs(request: Request) -> Response:
    return JSONResponse(request.app.state.openapi)


async def home(request: Request) -> Response:
    return RedirectResponse("ui")


def _settings(request: Request) -> Settings:
    settings: Settings = request.app.state.settings
    return settings


def _admission(request: Request) -> Admission:
    admission: Admission = request.app.state.admission
    return admission


async def _files(request: Request, field: str, place: Place, *, most: int = 1) -> list[bytes]:
    settings = _settings(request)
    size = settings.max_bytes * (1 if most == 1 else BATCH_BODY_FILES)
    limits = Limits(files=most, bytes=size, seconds=settings.timeout_s, idle_s=settings.idle_s)
    data = await read_files(request, field, limits, place)
    request.state.images = data
    return data


def _top_k(request: Request) -> int | None:
    if not request.scope["query_string"]:
        return None
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
        return vars(answer)
    if not isinstance(answer, Exception):
        raise answer
    error = describe(answer)
    request.app.state.metrics.rejected(error.code)
    return envelope(error, request.state.request_id)


ROUTES = [
    # SageMaker's names of two routes; before the others, so that metrics know both by the others' names.
    Route("/invocations", predict, methods=["POST"]),
    Route("/ping", readyz),
    Route("/predict", predict, methods=["POST"]),
    Route("/predict_batch", predict_batch, methods=["POST"]),
    Route("/explain", explain, methods=["POST"]),
    Route("/model", model_card),
    Route("/ui", page),
    Route("/livez", livez),
    Route("/readyz", readyz),
    Route("/metrics", metrics),
    Route("/docs.json", docs),
    Route("/", home),
    *open_inference.ROUTES,
]
