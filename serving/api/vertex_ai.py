"""The JSON of Vertex AI's predictions: `{"instances": [{"b64": ...}]}`, with `{"parameters": {"top_k": 3}}` if wanted.

https://cloud.google.com/vertex-ai/docs/predictions/custom-container-requirements#prediction
"""

import base64
import binascii
from typing import Annotated

from pydantic import BaseModel, FailFast, Field

from serving.api.errors import RequestError
from serving.settings import Settings

MOST_MARKS = 50_000
"""Commas and brackets of a body, counted before it is parsed. Base64 has none, and 32 instances have some hundred. Of
14 MB of little else the parser would make 0.7 GB, in which the event loop does nothing else for seconds."""


class _Instance(BaseModel, strict=True):
    b64: str


class _Parameters(BaseModel, strict=True):
    top_k: Annotated[int | None, Field(gt=0)] = None


class _Body(BaseModel, strict=True):
    instances: Annotated[list[_Instance], FailFast()]
    parameters: _Parameters | None = None


def most_bytes(settings: Settings) -> int:
    """The largest body: one image of the largest size, which base64 makes longer by a third, and the JSON around it."""
    return settings.max_bytes * 4 // 3 + 64 * 1024


def parse(body: bytes, max_images: int) -> tuple[list[bytes], int | None]:
    """The encoded images, 1 to `max_images`, and how many classes each answer has. Raises RequestError."""
    if sum(map(body.count, b"[{,")) > MOST_MARKS:
        raise _malformed()
    try:
        value = _Body.model_validate_json(body)
        images = [base64.b64decode(instance.b64, validate=True) for instance in value.instances]
    except (binascii.Error, ValueError) as error:
        raise _malformed() from error
    if not 1 <= len(images) <= max_images:
        raise RequestError(400, "too_many_files", f"expected 1 to {max_images} instances, got {len(images)}")
    return images, value.parameters.top_k if value.parameters else None


def _malformed() -> RequestError:
    expected = 'the body is not {"instances": [{"b64": "..."}]}, with images in base64'
    return RequestError(400, "malformed_instances", expected)
