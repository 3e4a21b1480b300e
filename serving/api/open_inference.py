"""The Open Inference Protocol, version 2, which the clients of KServe and Triton use; with binary tensors.

https://github.com/kserve/open-inference-protocol/blob/main/specification/protocol/inference_rest.md and, for tensors
that follow the JSON as bytes, https://github.com/triton-inference-server/server/blob/main/docs/protocol. The model's
name is a setting, so that clients need not change with the model; its version is the card's.
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
from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from serving.api.errors import RequestError
from serving.api.state import ServiceState
from serving.api.upload import Limits, read_body
from serving.api.waiting import await_for_client
from serving.contract.card import INPUT_NAME, NOVELTY_NAME, OUTPUT_NAME, ModelCard
from serving.contract.decode import Pixels, Preprocessing
from serving.contract.model import Answer
from serving.inference.predictor import Predictor

FILES, LABELS, DECISIONS = "files", "labels", "decisions"
LEAST_COST, UNFAMILIAR = "least_cost", "unfamiliar"
HEADER_LENGTH = "Inference-Header-Content-Length"
MAX_JSON = 2**20
"""Bytes: JSON is parsed in one step, which blocks the event loop. Large tensors are sent as bytes."""


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


class _Body(BaseModel, strict=True):
    """The JSON of an infer request; other members of the protocol are allowed and ignored."""

    inputs: list[_Input]
    outputs: list[_Output] = []
    parameters: _RequestParameters = _RequestParameters()
    id: str | None = None


@dataclass(frozen=True)
class InferRequest:
    """The images and the outputs that a client asks for.

    All images are pixels `[height, width, channels]` as the graph takes them, or all are encoded.
    """

    id: str | None
    images: Sequence[Pixels] | Sequence[bytes]
    outputs: dict[str, bool]
    """Names of the outputs, and whether each is sent as bytes."""


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
    with state.admission.reserve() as reservation:
        body = await read_body(request, limits.bytes, limits, reservation)
        header_length = request.headers.get(HEADER_LENGTH)
        wanted = parse(body, header_length, predictor.card, settings.max_batch)
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


def outputs_of(card: ModelCard) -> dict[str, tuple[str, tuple[int, ...]]]:
    """By name, datatype and shape for one image of each output; what the card does not decide has none."""
    outputs: dict[str, tuple[str, tuple[int, ...]]] = {
        OUTPUT_NAME: ("FP32", (len(card.classes),)),
        LABELS: ("BYTES", ()),
    }
    if card.operating_points:
        outputs[DECISIONS] = ("BOOL", (len(card.operating_points),))
    if card.costs is not None:
        outputs[LEAST_COST] = ("BYTES", ())
    if card.familiarity is not None:
        outputs |= {UNFAMILIAR: ("BOOL", ()), NOVELTY_NAME: ("FP32", ())}
    return outputs


def parse(body: bytes, header_length: str | None, card: ModelCard, max_images: int) -> InferRequest:
    """Read the body of an infer request. Raises RequestError."""
    text, binary = _split(body, header_length)
    try:
        value = _Body.model_validate_json(text)
        [tensor] = value.inputs
    except ValueError as error:
        raise _malformed("the body is not an inference request with one input") from error
    outputs = _outputs(value, card)
    if not tensor.shape or not 1 <= tensor.shape[0] <= max_images:
        raise RequestError(400, "too_many_files", f"expected 1 to {max_images} images, got shape {tensor.shape}")
    return InferRequest(value.id, _images(tensor, binary, card.preprocessing), outputs)


def _split(body: bytes, header_length: str | None) -> tuple[bytes, bytes]:
    """The JSON at the beginning of the body, and the binary tensor after it."""
    split = len(body)
    if header_length is not None:
        if not (header_length.isascii() and header_length.isdecimal() and int(header_length[:12]) <= len(body)):
            raise _malformed(f"{HEADER_LENGTH} must be a number of bytes within the body, not {header_length[:40]!r}")
        split = int(header_length[:12])
    if split > MAX_JSON:
        raise RequestError(
            413, "payload_too_large", f"at most {MAX_JSON:,} bytes of JSON are accepted; send tensors as bytes"
        )
    return body[:split], body[split:]


def _outputs(value: _Body, card: ModelCard) -> dict[str, bool]:
    offered = outputs_of(card)
    all_as_bytes = value.parameters.binary_data_output
    outputs = {
        output.name: all_as_bytes if output.parameters.binary_data is None else output.parameters.binary_data
        for output in value.outputs
    } or dict.fromkeys(offered, all_as_bytes)
    if unknown := sorted(set(outputs) - set(offered)):
        raise _malformed(f"there is no output {unknown[0][:40]!r}, only {' and '.join(map(repr, offered))}")
    return outputs


def _images(tensor: _Input, binary: bytes, preprocessing: Preprocessing) -> Sequence[Pixels] | Sequence[bytes]:
    size, shape = tensor.parameters.binary_data_size, tuple(tensor.shape)
    if size is not None and size != len(binary):
        raise _malformed(f"the input says it has {size} bytes, but {len(binary)} follow the JSON")
    data = tensor.data if size is None else binary
    if (tensor.name, tensor.datatype) == (INPUT_NAME, "UINT8"):
        return list(_pixels(data, shape, preprocessing))
    if (tensor.name, tensor.datatype) == (FILES, "BYTES") and math.prod(shape) == shape[0]:
        return _files(data, shape[0])
    received = f"{tensor.name!r} ({tensor.datatype}, {tensor.shape})"
    raise _malformed(f"expected {INPUT_NAME!r} (UINT8) or {FILES!r} (BYTES, [n]), got {received}")


def _predictor(request: Request, state: ServiceState) -> Predictor:
    predictor, parameters = state.readiness.current_predictor(), request.path_params
    name, version = state.settings.name, predictor.card.version
    if parameters.get("name", name) != name or parameters.get("version", version) != version:
        available = f"{name!r}, version {version!r}"
        raise RequestError(404, "not_found", f"no such model or version; there is {available}")
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
    """Encoded images: base64 in JSON; in binary, each after its length (four bytes, little-endian)."""
    if not isinstance(data, bytes):
        try:
            files = [base64.b64decode(text, validate=True) for text in data]
        except (binascii.Error, ValueError, TypeError) as error:
            raise _malformed("in JSON, files are strings in base64") from error
    else:
        files, start = [], 0
        while start + 4 <= len(data):
            end = start + 4 + int.from_bytes(data[start : start + 4], "little")
            files.append(data[start + 4 : end])
            start = end
        if start != len(data):
            raise _malformed("the files are cut off")
    if len(files) != count:
        raise _malformed(f"expected {count} files, got {len(files)}")
    return files


def _response(wanted: InferRequest, predictor: Predictor, model: str, answers: Sequence[Answer]) -> Response:
    values = _values(predictor, answers)
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


def _values(predictor: Predictor, answers: Sequence[Answer]) -> dict[str, np.ndarray | list[str]]:
    """By name, all outputs for these answers, which the metrics count; texts as lists."""
    predictions = [predictor.describe(answer) for answer in answers]
    return {
        OUTPUT_NAME: np.stack([answer.probabilities for answer in answers]),
        LABELS: [prediction.label for prediction in predictions],
        DECISIONS: np.array([list((prediction.decisions or {}).values()) for prediction in predictions], bool),
        LEAST_COST: [prediction.least_cost or "" for prediction in predictions],
        UNFAMILIAR: np.array([prediction.unfamiliar for prediction in predictions], bool),
        NOVELTY_NAME: np.array([answer.novelty for answer in answers], np.float32),
    }


def _with_lengths(labels: Sequence[str]) -> bytes:
    """Strings as a binary tensor: each after its length (four bytes, little-endian)."""
    encoded = [label.encode() for label in labels]
    return b"".join(len(label).to_bytes(4, "little") + label for label in encoded)
