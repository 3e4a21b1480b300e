"""The body of an infer request: images and wanted outputs, from JSON and the bytes of binary tensors after it."""

import base64
import binascii
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
from pydantic import BaseModel, FailFast, Field

from serving.api.errors import RequestError
from serving.api.open_inference.outputs import outputs_of
from serving.contract.card.model_card import INPUT_NAME, ModelCard
from serving.contract.decode import Pixels, Preprocessing

FILES = "files"
HEADER_LENGTH = "Inference-Header-Content-Length"
MAX_JSON = 2**20
"""Bytes: JSON is parsed in one step, which blocks the event loop. Large tensors are sent as bytes."""
MOST_SIDES, MOST_OUTPUTS = 8, 16
"""Most sides of a shape, outputs of a request: for 1 MiB of faults, the parser would make errors for seconds."""

_Int64 = Annotated[int, Field(ge=-(2**63), lt=2**63)]


class _InputParameters(BaseModel, strict=True):
    binary_data_size: _Int64 | None = None


class _Input(BaseModel, strict=True):
    name: str
    datatype: str
    shape: Annotated[list[_Int64], FailFast(), Field(max_length=MOST_SIDES)]
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

    inputs: Annotated[list[_Input], FailFast(), Field(max_length=1)]
    outputs: Annotated[list[_Output], FailFast(), Field(max_length=MOST_OUTPUTS)] = []
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


def parse_request(body: bytes, header_length: str | None, card: ModelCard, max_images: int) -> InferRequest:
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
    if (tensor.name, tensor.datatype) == (FILES, "BYTES") and all(side == 1 for side in shape[1:]):
        return _files(data, shape[0])
    received = f"{tensor.name[:40]!r} ({tensor.datatype[:40]}, {tensor.shape})"
    raise _malformed(f"expected {INPUT_NAME!r} (UINT8) or {FILES!r} (BYTES, [n]), got {received}")


def _malformed(message: str) -> RequestError:
    return RequestError(400, "malformed_inference_request", message)


def _pixels(data: Any, shape: tuple[int, ...], preprocessing: Preprocessing) -> np.ndarray:
    expected = (preprocessing.height, preprocessing.width, preprocessing.channels)
    if shape[1:] != expected:
        raise _malformed(f"expected images of {list(expected)} (height, width, channels), got {list(shape[1:])}")
    try:
        if isinstance(data, bytes):
            return np.frombuffer(data, np.uint8).reshape(shape)
        values = np.array(data, dtype=object)  # one that fits all would have the longest text's size for each element
        if not all(type(value) is int and 0 <= value <= 255 for value in values.flat):
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
        while start + 4 <= len(data) and len(files) <= count:
            end = start + 4 + int.from_bytes(data[start : start + 4], "little")
            files.append(data[start + 4 : end])
            start = end
        if start != len(data) and len(files) <= count:
            raise _malformed("the files are cut off")
    if len(files) != count:
        raise _malformed(f"expected {count} files, got {len(files)}")
    return files
