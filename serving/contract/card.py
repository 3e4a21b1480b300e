"""What a model file says about itself, and both sides must agree on: one frozen dataclass, one JSON value.

The trainer writes it, the service reads it. What is neither in this package nor in the ONNX file is not agreed on.
"""

import json
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float32
from pydantic import ConfigDict, JsonValue, TypeAdapter, ValidationError

from serving.contract.decode import Digest, Preprocessing
from serving.contract.drift import Histogram

CONTRACT_VERSION = 1
METADATA_KEY = "twinlens"
INPUT_NAME = "images"
OUTPUT_NAME = "probabilities"

TOLERANCE = 1e-4
"""The largest difference of a probability between two ways of computing it that still counts as the same."""

NormalizationMode = Literal["standard", "image", "image_per_channel", "min_max", "min_max_per_channel"]


@dataclass(frozen=True, kw_only=True)
class Normalization:
    """The arithmetic of `A.Normalize`, done by the graph's first layer."""

    mode: NormalizationMode
    mean: tuple[float, ...]
    std: tuple[float, ...]
    max_pixel_value: float


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """What the validation split says of the model's confidence.

    The graph's logits are divided by `temperature` before the softmax. A class belongs to the prediction set when its
    probability reaches `threshold`; None when the validation split was too small to say. The sets hold the true class
    with probability `level` for images exchangeable with the validation split.
    """

    temperature: float
    level: float
    threshold: float | None

    def prediction_sets(self, probabilities: Float32[np.ndarray, "batch classes"]) -> Bool[np.ndarray, "batch classes"]:
        """Which classes are in each image's set; the most likely one always is. Only with a threshold."""
        assert self.threshold is not None
        sets = probabilities >= np.float32(self.threshold)
        sets[np.arange(len(sets)), probabilities.argmax(1)] = True
        return sets


@dataclass(frozen=True, kw_only=True)
class Score:
    """A score on the held-out test split and its 95 % interval; None where it is undefined or has no interval."""

    value: float | None
    interval: tuple[float, float] | None


@dataclass(frozen=True, kw_only=True)
class Golden:
    """An image with its known answer; the service replays it before it says it is ready."""

    image: bytes
    pixels: Digest
    probabilities: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """Where the model comes from, enough to make it again."""

    created: str
    config: dict[str, JsonValue]
    data_digest: Digest
    checkpoint_digest: Digest
    git_revision: str | None
    packages: dict[str, str]


@dataclass(frozen=True, kw_only=True)
class ModelCard:
    """What a model file says about itself: one JSON value in the `metadata_props` of the ONNX file."""

    __pydantic_config__ = ConfigDict(extra="forbid", ser_json_bytes="base64", val_json_bytes="base64")

    contract_version: int
    name: str
    version: str
    classes: tuple[str, ...]
    preprocessing: Preprocessing
    normalization: Normalization
    calibration: Calibration
    goldens: tuple[Golden, ...]
    scores: dict[str, Score]
    reference: dict[str, Histogram]
    """By feature, what the test split was like: today's images are compared with it. Empty where it was too small."""
    provenance: Provenance

    def to_json(self) -> str:
        """One JSON value, the only form in which a card is stored."""
        return _CARD.dump_json(self).decode()

    @classmethod
    def from_json(cls, text: str) -> "ModelCard":
        """Read a card. Raises CardError naming the unknown version, or each missing, unknown or ill-typed field."""
        try:
            version = json.loads(text)["contract_version"]
        except (ValueError, KeyError, TypeError) as error:
            raise CardError("the card is not a JSON object with a contract_version") from error
        if version != CONTRACT_VERSION:
            raise CardError(f"the card is of contract version {version!r}; this side reads version {CONTRACT_VERSION}")
        try:
            return _CARD.validate_json(text)
        except ValidationError as error:
            faults = "; ".join(f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in error.errors())
            raise CardError(f"the card does not hold what the contract asks for: {faults}") from error


_CARD = TypeAdapter(ModelCard)


class CardError(ValueError):
    """A card that this side cannot trust."""
