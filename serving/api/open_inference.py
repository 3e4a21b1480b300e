"""The Open Inference Protocol, version 2, which the clients of KServe and Triton speak; with binary tensors.

https://github.com/kserve/open-inference-protocol/blob/main/specification/protocol/inference_rest.md and, for tensors
that follow the JSON as bytes, https://github.com/triton-inference-server/server/blob/main/docs/protocol. The model has
one name whatever it was trained as, so that a client outlives it; its version is the card's.
"""

import asyncio
import base64
import binascii
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float32
from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from serving.api.errors import OPEN_INFERENCE as PREFIX
from serving.api.errors import RequestError
from serving.api.json_response import JSONResponse
from serving.api.readiness import check_alive, check_ready, current_predictor
from serving.api.upload import Limits, read_body
from serving.api.waiting import while_awaited
from serving.contract.card import INPUT_NAME, OUTPUT_NAME
from serving.contract.decode import Pixels, Preprocessing
from serving.inference.predictor import Predictor
from serving.settings import Settings

NAME = "twinlens"
FILES, LABELS = "files", "labels"
HEADER_LENGTH = "Inference-Header-Content-Length"
MAX_JSON = 2**20
"""Bytes: JSON is parsed in one go, and nothing else is answered meanwhile. Large tensors come as bytes."""
BODY_FILES = 4


class _InputParameters(BaseModel, strict=True):
    binary_data_size: int | None = None


class _Input(BaseModel, strict=True):
    name: str
    datatype: str
    shape: list[int]
    parameters: _InputParameters = _InputParameters()
    data: Any = None


class _OutputParameters(BaseModel, strict=True):
    binary_data: bool | None = None


class _Output(BaseModel, strict=True):
    name: str
    parameters: _OutputParameters = _OutputParameters()


class _RequestParameters(BaseModel, strict=True):
    binary_data_output: bool = False


class _Request(BaseModel, strict=True):
    """The JSON of an infer request; what the protocol has beside this is allowed, and nothing here depends on it."""

    inputs: list[_Input]
    outputs: list[_Output] = []
    parameters: _RequestParameters = _RequestParameters()
    id: str | None = None


@dataclass(frozen=True)
class Inference:
    """What is asked: pixels `[height, width, channels]` as the graph takes them, or encoded images; never both."""

    id: str | None
    images: Sequence[Pixels] | Sequence[bytes]
    outputs: dict[str, bool]
    """Names of the outputs, and whether each is wanted as bytes."""


async def server(request: Request) -> Response:
    return JSONResponse({"name": NAME, "version": "1", "extensions": ["binary_tensor_data"]})


async def live(request: Request) -> Response:
    check_alive(request)
    return JSONResponse({"live": True})


async def ready(request: Request) -> Response:
    check_ready(request)
    _predictor(request)
    return JSONResponse({"ready": True})


async def metadata(request: Request) -> Response:
    return JSONResponse(describe(_predictor(request)))


async def infer(request: Request) -> Response:
    predictor = _predictor(request)
    settings: Settings = request.app.state.settings
    size = settings.max_bytes * BODY_FILES
    limits = Limits(files=settings.max_batch, bytes=size, seconds=settings.timeout_s, idle_s=settings.idle_s)
    with request.app.state.admission.place() as place:
        body = await read_body(request, size, limits, place)
        header_length = request.headers.get(HEADER_LENGTH)
        asked = parse(body, header_length, predictor.card.preprocessing, settings.max_batch)
        place.enter(len(asked.images))
        # All are waited for, also when one fails: the place is given back only when nothing works for it any more.
        inferring = asyncio.gather(*(predictor.infer(image) for image in asked.images), return_exceptions=True)
        rows = await while_awaited(request, inferring, settings.timeout_s)
    for row in rows:
        if isinstance(row, BaseException):
            raise row
    return _reply(asked, predictor, np.stack([row for row in rows if isinstance(row, np.ndarray)]))


def describe(predictor: Predictor) -> dict[str, object]:
    """The model's metadata; one of the two inputs is sent."""
    made, classes = predictor.card.preprocessing, predictor.card.classes
    return {
        "name": NAME,
        "versions": [predictor.card.version],
        "platform": "onnxruntime_onnx",
        "inputs": [
            {"name": INPUT_NAME, "datatype": "UINT8", "shape": [-1, made.height, made.width, made.channels]},
            {"name": FILES, "datatype": "BYTES", "shape": [-1]},
        ],
        "outputs": [
            {"name": OUTPUT_NAME, "datatype": "FP32", "shape": [-1, len(classes)]},
            {"name": LABELS, "datatype": "BYTES", "shape": [-1]},
        ],
    }


def parse(body: bytes, header_length: str | None, preprocessing: Preprocessing, max_images: int) -> Inference:
    """Read the body of an infer request. Raises RequestError."""
    split = len(body)
    if header_length is not None:
        if not (header_length.isascii() and header_length.isdecimal() and int(header_length[:12]) <= len(body)):
            raise _malformed(f"{HEADER_LENGTH} must be a number of bytes within the body, not {header_length[:40]!r}")
        split = int(header_length[:12])
    if split > MAX_JSON:
        raise RequestError(
            413, "payload_too_large", f"at most {MAX_JSON:,} bytes of JSON are accepted; send tensors as bytes"
        )
    try:
        value = _Request.model_validate_json(body[:split])
        [tensor] = value.inputs
    except ValueError as error:
        raise _malformed("the body is not an inference request with one input") from error
    name, kind, shape, size = tensor.name, tensor.datatype, tuple(tensor.shape), tensor.parameters.binary_data_size
    all_as_bytes = value.parameters.binary_data_output
    outputs = {
        output.name: all_as_bytes if output.parameters.binary_data is None else output.parameters.binary_data
        for output in value.outputs
    } or dict.fromkeys((OUTPUT_NAME, LABELS), all_as_bytes)
    data = tensor.data if size is None else body[split:]
    if unknown := sorted(set(outputs) - {OUTPUT_NAME, LABELS}):
        raise _malformed(f"there is no output {unknown[0][:40]!r}, only {OUTPUT_NAME!r} and {LABELS!r}")
    if not shape or not 1 <= shape[0] <= max_images:
        raise RequestError(400, "too_many_files", f"expected 1 to {max_images} images, got shape {list(shape)}")
    if size is not None and size != len(data):
        raise _malformed(f"the input says it has {size} bytes, but {len(data)} follow the JSON")
    sent: Sequence[Pixels] | Sequence[bytes]
    if (name, kind) == (INPUT_NAME, "UINT8"):
        sent = list(_pixels(data, shape, preprocessing))
    elif (name, kind) == (FILES, "BYTES") and math.prod(shape) == shape[0]:
        sent = _files(data, shape[0])
    else:
        raise _malformed(
            f"expected {INPUT_NAME!r} (UINT8) or {FILES!r} (BYTES, [n]), got {name!r} ({kind}, {list(shape)})"
        )
    return Inference(value.id, sent, outputs)


def _predictor(request: Request) -> Predictor:
    predictor, given = current_predictor(request), request.path_params
    if given.get("name", NAME) != NAME or given.get("version", predictor.card.version) != predictor.card.version:
        here = f"{NAME!r}, version {predictor.card.version!r}"
        raise RequestError(404, "not_found", f"no such model or version; there is {here}")
    return predictor


def _malformed(message: str) -> RequestError:
    return RequestError(400, "malformed_inference_request", message)


def _pixels(data: Any, shape: tuple[int, ...], preprocessing: Preprocessing) -> np.ndarray:
    expected = (preprocessing.height, preprocessing.width, preprocessing.channels)
    if shape[1:] != expected:
        raise _malformed(f"expected images of {list(expected)} (height, width, channels), got {list(shape[1:])}")
    try:
        values = np.frombuffer(data, np.uint8) if isinstance(data, bytes) else np.array(data)
        whole = values.dtype == np.uint8 or (values.dtype.kind == "i" and values.min() >= 0 and values.max() <= 255)
        if not whole:
            raise ValueError("not whole numbers from 0 to 255")
        return values.astype(np.uint8).reshape(shape)
    except (ValueError, TypeError) as error:
        raise _malformed(f"the data are not {math.prod(shape):,} whole numbers from 0 to 255") from error


def _files(data: Any, count: int) -> list[bytes]:
    """Encoded images: base64 in JSON; as bytes, four of length (little-endian) before each."""
    if not isinstance(data, bytes):
        try:
            found = [base64.b64decode(text, validate=True) for text in data]
        except (binascii.Error, ValueError, TypeError) as error:
            raise _malformed("in JSON, files are strings in base64") from error
    else:
        found, start = [], 0
        while start + 4 <= len(data):
            end = start + 4 + int.from_bytes(data[start : start + 4], "little")
            found.append(data[start + 4 : end])
            start = end
        if start != len(data):
            raise _malformed("the files are cut off")
    if len(found) != count:
        raise _malformed(f"expected {count} files, got {len(found)}")
    return found


def _reply(asked: Inference, predictor: Predictor, probabilities: Float32[np.ndarray, "batch classes"]) -> Response:
    labels = [predictor.describe(row).label for row in probabilities]
    tensors: list[dict[str, object]] = []
    blobs: list[bytes] = []
    for name, as_bytes in asked.outputs.items():
        tensor: dict[str, object] = {"name": name, "datatype": "BYTES", "shape": [len(labels)]}
        if name == OUTPUT_NAME:
            tensor |= {"datatype": "FP32", "shape": list(probabilities.shape)}
        if not as_bytes:
            tensor["data"] = labels if name == LABELS else probabilities.ravel().tolist()
        else:
            encoded = [label.encode() for label in labels]
            blob = probabilities.tobytes()
            if name == LABELS:
                blob = b"".join(len(label).to_bytes(4, "little") + label for label in encoded)
            tensor["parameters"] = {"binary_data_size": len(blob)}
            blobs.append(blob)
        tensors.append(tensor)
    value = {"model_name": NAME, "model_version": predictor.card.version, "outputs": tensors}
    header = json.dumps(value | ({"id": asked.id} if asked.id else {}), ensure_ascii=False).encode()
    if not blobs:
        return Response(header, media_type="application/json")
    return Response(
        b"".join([header, *blobs]), 200, {HEADER_LENGTH: str(len(header))}, media_type="application/octet-stream"
    )


MODEL = f"{PREFIX}/models/{{name}}"
ROUTES = [
    Route(PREFIX, server),
    Route(f"{PREFIX}/health/live", live),
    Route(f"{PREFIX}/health/ready", ready),
    # Metrics know a route by the last of its names.
    *(
        route
        for path in (f"{MODEL}/versions/{{version}}", MODEL)
        for route in (
            Route(path, metadata),
            Route(f"{path}/ready", ready),
            Route(f"{path}/infer", infer, methods=["POST"]),
        )
    ),
]
"""The protocol's routes."""
