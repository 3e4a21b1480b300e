"""What the service answers to each of its own routes."""

import asyncio
import dataclasses
from collections.abc import Sequence
from typing import Any

import orjson
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response

from serving.api import vertex_ai
from serving.api.errors import RequestError, as_request_error, error_body, log_error
from serving.api.state import ServiceState
from serving.api.upload import Limits, read_body, read_files
from serving.api.waiting import await_for_client
from serving.contract.card.model_card import ModelCard
from serving.exposition import exposition
from serving.inference.heatmap import as_json, as_png, overlay
from serving.inference.occlusion import Explanation
from serving.inference.prediction import Prediction
from serving.inference.predictor import Predictor
from serving.inference.similar import training_images

SIMILAR, MOST_SIMILAR = 5, 50
"""Training images that /similar answers with: without `k`, and at most."""


class JSONResponse(Response):
    """As Starlette's of the same name, but written by orjson: nine probabilities take 0.4 us instead of 4.6."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        """The body."""
        return orjson.dumps(content)


async def predict(request: Request, state: ServiceState) -> Response:
    top_k = _whole_number(request, "top_k")
    predictor = state.readiness.current_predictor()
    with state.admission.reserve() as reservation:
        [data] = await read_files(request, "image", Limits.of_one(state.settings), reservation)
        request.state.images = [data]
        reservation.add_images(1)
        prediction = await await_for_client(request, predictor.predict(data, top_k), state.settings.timeout_s)
    request.state.fields = {"label": prediction.label, "confidence": prediction.confidence}
    return JSONResponse(prediction.body)


async def predict_batch(request: Request, state: ServiceState) -> Response:
    top_k = _whole_number(request, "top_k")
    predictor = state.readiness.current_predictor()
    with state.admission.reserve(batch=True) as reservation:
        images = await read_files(request, "images", Limits.of_batch(state.settings), reservation)
        reservation.add_images(len(images))
        return JSONResponse({"results": await _results(request, state, predictor, images, top_k)})


async def predict_instances(request: Request, state: ServiceState) -> Response:
    predictor = state.readiness.current_predictor()
    limits = Limits.of_batch(state.settings)
    with state.admission.reserve(batch=True) as reservation:
        body = await read_body(request, vertex_ai.most_bytes(state.settings), limits, reservation)
        images, top_k = vertex_ai.parse(body, limits.files)
        reservation.add_images(len(images))
        return JSONResponse({"predictions": await _results(request, state, predictor, images, top_k)})


async def explain(request: Request, state: ServiceState) -> Response:
    predictor = state.readiness.current_predictor()
    label = _label(request, predictor.card.classes)
    draw = _explanation_as_png if _wants_png(request) else _explanation_as_json
    with state.admission.reserve() as reservation:
        [data] = await read_files(request, "image", Limits.of_one(state.settings), reservation)
        request.state.images = [data]
        explaining = state.explainer.explain(predictor, data, label, draw)
        return await await_for_client(request, explaining, state.settings.timeout_s)


async def similar(request: Request, state: ServiceState) -> Response:
    predictor = state.readiness.current_predictor()
    count = _whole_number(request, "k", MOST_SIMILAR) or SIMILAR
    training_images(predictor)  # raises before the body is read
    with state.admission.reserve() as reservation:
        [data] = await read_files(request, "image", Limits.of_one(state.settings), reservation)
        request.state.images = [data]
        reservation.add_images(1)
        searching = state.searcher.search(predictor, data, count)
        nearest = await await_for_client(request, searching, state.settings.timeout_s)
    return JSONResponse(nearest.body)


async def model_card(request: Request, state: ServiceState) -> Response:
    predictor = state.readiness.current_predictor()
    neighbours = predictor.card.neighbours if state.settings.similar else None  # the page offers what the card has
    # Where the trainer ran, and on what, is for who has the file: options may be paths with names.
    provenance = dataclasses.replace(predictor.card.provenance, config={}, environment={})
    card: ModelCard = dataclasses.replace(predictor.card, goldens=(), neighbours=neighbours, provenance=provenance)
    return Response(card.to_json(), 200, {"ETag": f'"{predictor.classifier.digest}"'}, "application/json")


async def ui(request: Request, state: ServiceState) -> Response:
    return HTMLResponse(state.page.html, headers=state.page.headers)


async def livez(request: Request, state: ServiceState) -> Response:
    state.readiness.check_alive()
    return Response("\n", media_type="text/plain")


async def readyz(request: Request, state: ServiceState) -> Response:
    state.readiness.check_ready()
    return Response("\n", media_type="text/plain")


async def metrics(request: Request, state: ServiceState) -> Response:
    return Response(await asyncio.to_thread(exposition), media_type="text/plain; version=0.0.4")


async def docs(request: Request, state: ServiceState) -> Response:
    return JSONResponse(state.openapi)


async def bento_schema(request: Request, state: ServiceState) -> Response:
    return JSONResponse(state.bento_schema)


async def home(request: Request, state: ServiceState) -> Response:
    return RedirectResponse("ui")


def _whole_number(request: Request, name: str, most: int | None = None) -> int | None:
    """A parameter of the query; None where it is not given. Raises RequestError."""
    if not request.scope["query_string"]:
        return None
    text = request.query_params.get(name)
    if text is None:
        return None
    number = int(text[:9]) if text.isascii() and text.isdecimal() else 0
    if number < 1 or (most is not None and number > most):
        expected = "above 0" if most is None else f"from 1 to {most}"
        raise RequestError(400, f"invalid_{name}", f"{name} must be a whole number {expected}, not {text[:40]!r}")
    return number


def _label(request: Request, classes: tuple[str, ...]) -> str | None:
    label = request.query_params.get("label")
    if label is not None and label not in classes:
        raise RequestError(
            400, "unknown_label", f"{label[:40]!r} is no class of this model; see /model for its classes"
        )
    return label


def _wants_png(request: Request) -> bool:
    wanted = request.query_params.get("format")
    if wanted not in (None, "png", "json"):
        raise RequestError(400, "invalid_format", f"format must be png or json, not {wanted[:40]!r}")
    accepted = request.headers.get("accept", "")
    return wanted == "png" or (wanted is None and "image/png" in accepted and "json" not in accepted)


def _explanation_as_png(explanation: Explanation) -> Response:
    return Response(as_png(overlay(explanation)), media_type="image/png")


def _explanation_as_json(explanation: Explanation) -> Response:
    return JSONResponse(as_json(explanation))


async def _results(
    request: Request, state: ServiceState, predictor: Predictor, images: Sequence[bytes], top_k: int | None
) -> list[dict[str, object]]:
    """The result, or the error, of each image. Raises the first error where the service has failed for all images."""
    request.state.images = images
    predicting = asyncio.gather(*(predictor.predict(image, top_k) for image in images), return_exceptions=True)
    results = await await_for_client(request, predicting, state.settings.timeout_s)
    _log_or_raise(request, results)
    return [_batch_element(request, result, state) for result in results]


def _log_or_raise(request: Request, results: Sequence[Prediction | BaseException]) -> None:
    # A run of the model that fails gives one and the same error to all its images.
    errors = list({id(result): result for result in results if isinstance(result, Exception)}.values())
    all_fail = all(isinstance(result, Exception) and as_request_error(result).status >= 500 for result in results)
    for error in errors[1:] if all_fail else errors:  # the one that is raised is logged as the request's
        log_error(error, as_request_error(error), request.state.request_id)
    if all_fail:
        raise errors[0]


def _batch_element(request: Request, result: Prediction | BaseException, state: ServiceState) -> dict[str, object]:
    if isinstance(result, Prediction):
        return result.body
    if not isinstance(result, Exception):
        raise result
    error = as_request_error(result)
    state.metrics.requests.rejected(error.code)
    return error_body(error, request.state.request_id)
