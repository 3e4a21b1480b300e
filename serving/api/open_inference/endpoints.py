"""The Open Inference Protocol, version 2, which the clients of KServe and Triton use; with binary tensors.

https://github.com/kserve/open-inference-protocol/blob/main/specification/protocol/inference_rest.md and, for tensors
that follow the JSON as bytes, https://github.com/triton-inference-server/server/blob/main/docs/protocol. The model's
name is a setting, so that clients need not change with the model; its version is the card's.
"""

import asyncio
import json
from collections.abc import Sequence

import numpy as np
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from serving.api.errors import RequestError
from serving.api.open_inference.outputs import outputs_of, values_of
from serving.api.open_inference.request import FILES, HEADER_LENGTH, InferRequest, parse_request
from serving.api.state import ServiceState
from serving.api.upload import Limits, read_body
from serving.api.waiting import await_for_client
from serving.contract.card.model_card import INPUT_NAME
from serving.contract.model import Answer
from serving.inference.predictor import Predictor


async def server(request: Request, state: ServiceState) -> Response:
    return JSONResponse({"name": state.settings.name, "version": "1", "extensions": ["binary_tensor_data"]})


async def live(request: Request, state: ServiceState) -> Response:
    state.readiness.check_alive()
    return JSONResponse({"live": True})


async def ready(request: Request, state: ServiceState) -> Response:
    state.readiness.check_ready()
    _predictor(request, state)
    return JSONResponse({"ready": True})


async def metadata(request: Request, state: ServiceState) -> Response:
    return JSONResponse(model_metadata(_predictor(request, state), state.settings.name))


async def infer(request: Request, state: ServiceState) -> Response:
    predictor, settings = _predictor(request, state), state.settings
    limits = Limits.of_batch(settings)
    with state.admission.reserve(batch=True) as reservation:
        body = await read_body(request, limits.bytes, limits, reservation)
        header_length = request.headers.get(HEADER_LENGTH)
        wanted = parse_request(body, header_length, predictor.card, settings.max_batch)
        reservation.add_images(len(wanted.images))
        # All images are awaited even if one fails: the reservation ends only when no work for it is left.
        inferring = asyncio.gather(*(predictor.infer(image) for image in wanted.images), return_exceptions=True)
        rows = await await_for_client(request, inferring, settings.timeout_s)
    for row in rows:
        if isinstance(row, BaseException):
            raise row
    answers = [row for row in rows if isinstance(row, Answer)]
    return _response(wanted, predictor, settings.name, answers)


def error_body(error: RequestError) -> dict[str, object]:
    """The JSON body of an error, as the protocol defines it."""
    return {"error": str(error)}


def model_metadata(predictor: Predictor, name: str) -> dict[str, object]:
    """The model's metadata; a request has one of the two inputs."""
    size = predictor.card.preprocessing
    return {
        "name": name,
        "versions": [predictor.card.version],
        "platform": "onnxruntime_onnx",
        "inputs": [
            {"name": INPUT_NAME, "datatype": "UINT8", "shape": [-1, size.height, size.width, size.channels]},
            {"name": FILES, "datatype": "BYTES", "shape": [-1]},
        ],
        "outputs": [
            {"name": name, "datatype": datatype, "shape": [-1, *shape]}
            for name, (datatype, shape) in outputs_of(predictor.card).items()
        ],
    }


def _predictor(request: Request, state: ServiceState) -> Predictor:
    predictor, parameters = state.readiness.current_predictor(), request.path_params
    name, version = state.settings.name, predictor.card.version
    if parameters.get("name", name) != name or parameters.get("version", version) != version:
        available = f"{name!r}, version {version!r}"
        raise RequestError(404, "not_found", f"no such model or version; there is {available}")
    return predictor


def _response(wanted: InferRequest, predictor: Predictor, model: str, answers: Sequence[Answer]) -> Response:
    values = values_of(predictor, answers)
    datatypes = outputs_of(predictor.card)
    tensors: list[dict[str, object]] = []
    blobs: list[bytes] = []
    for name, as_bytes in wanted.outputs.items():
        value = values[name]
        tensor: dict[str, object] = {"name": name, "datatype": datatypes[name][0], "shape": list(np.shape(value))}
        if as_bytes:
            blob = _with_lengths(value) if isinstance(value, list) else value.tobytes()
            tensor["parameters"] = {"binary_data_size": len(blob)}
            blobs.append(blob)
        else:
            # As Python floats: JSON then holds all digits of the float32 values.
            tensor["data"] = value if isinstance(value, list) else value.ravel().tolist()
        tensors.append(tensor)
    body = {"model_name": model, "model_version": predictor.card.version, "outputs": tensors}
    header = json.dumps(body | ({"id": wanted.id} if wanted.id else {}), ensure_ascii=False).encode()
    if not blobs:
        return Response(header, media_type="application/json")
    return Response(
        b"".join([header, *blobs]), 200, {HEADER_LENGTH: str(len(header))}, media_type="application/octet-stream"
    )


def _with_lengths(labels: Sequence[str]) -> bytes:
    """Strings as a binary tensor: each after its length (four bytes, little-endian)."""
    encoded = [label.encode() for label in labels]
    return b"".join(len(label).to_bytes(4, "little") + label for label in encoded)
