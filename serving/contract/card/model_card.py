"""The model card: one JSON value in the metadata of the ONNX file.

The trainer writes it and the service reads it. It holds all that the service must know about a model, so that a model
file needs no other file beside it.
"""

import json
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float32, Int64
from pydantic import ConfigDict, TypeAdapter, ValidationError

from serving.contract.card.certificate import Certificate
from serving.contract.card.decisions import Calibration, Costs, Familiarity, OperatingPoint
from serving.contract.card.provenance import Provenance
from serving.contract.decode import Digest, Preprocessing
from serving.contract.drift import Histogram
from serving.contract.scene import Scene

CONTRACT_VERSION = 3
"""Written. Also read: version 2, without `preprocessing.depth`, `goldens.decoded`, `calibration.bias`, `certificate`,
`calibration.class_thresholds`, `calibration.prior_correction`, `formats`, `operating_points`, `costs`, `statement`,
`familiarity`, `neighbours` and `views`; version 1, without `preprocessing.fit` and `preprocessing.fill` either."""
READABLE_VERSIONS = (1, 2, CONTRACT_VERSION)
METADATA_KEY = "twinlens"
INPUT_NAME = "images"
OUTPUT_NAME = "probabilities"
EMBEDDING_NAME = "embedding"
"""Name of the output with what the last linear layer reads, scaled to length 1; files of older versions have none."""
NOVELTY_NAME = "novelty"
"""Name of the output that `Familiarity` reads."""

TOLERANCE = 1e-4
"""Two probabilities are equal if they differ by at most this. Two processors do not compute equal float32 values."""

Views = Literal["none", "flips", "turns"]
VIEWS: dict[Views, int] = {"none": 1, "flips": 2, "turns": 8}
"""How many views of an image the graph makes: with `flips` also its mirror image, with `turns` all flips and turns."""
NormalizationMode = Literal["standard", "image", "image_per_channel", "min_max", "min_max_per_channel"]


@dataclass(frozen=True, kw_only=True)
class Normalization:
    """The options of Albumentations' `A.Normalize`, whose arithmetic is the first layer of the graph."""

    mode: NormalizationMode
    mean: tuple[float, ...]
    std: tuple[float, ...]
    max_pixel_value: float


@dataclass(frozen=True, kw_only=True)
class Score:
    """A score on the test split and its 95 % confidence interval. None means undefined."""

    value: float | None
    interval: tuple[float, float] | None


@dataclass(frozen=True, kw_only=True)
class Golden:
    """A golden example: an image with the result of each step. The service repeats the steps before it is ready."""

    image: bytes | Scene
    """An encoded image, or what to draw where the image is large."""
    decoded: Digest | None = None
    """Digest of the decoded pixels; None in cards of versions 1 and 2."""
    pixels: Digest
    """Digest of the decoded and resized pixels."""
    probabilities: tuple[float, ...]
    """Output of the model, by class."""


@dataclass(frozen=True, kw_only=True)
class ModelCard:
    """All that the service must know about a model: the entry METADATA_KEY of the ONNX file's `metadata_props`."""

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
    """The histogram of each feature in the test split, for the measure of drift. Empty if the split is too small."""
    provenance: Provenance
    formats: tuple[str, ...] = ()
    """Formats of the files that the model was trained and tested on, as keys of `image_header.FILE_EXTENSIONS`. Empty:
    the images were no files, or the card is older."""
    certificate: Certificate | None = None
    """None: the rule of promotion did not hold or was not asked, or the card is of version 1 or 2."""
    operating_points: tuple[OperatingPoint, ...] = ()
    """At most one of each class."""
    costs: Costs | None = None
    """What answers cost; None: nothing is known."""
    statement: str | None = None
    """Models that scores, calibration and thresholds are of, where they are not of this file's. None: of this one."""
    familiarity: Familiarity | None = None
    """None: the graph has no output NOVELTY_NAME, and the model says of no image that it is unfamiliar."""
    neighbours: Digest | None = None
    """`TrainingIndex.digest` of the file of training images that may be beside the model. None: there is none."""
    views: Views = "none"
    """Views of each image, over which the graph takes the mean."""

    def images_at_once(self, most: int) -> int:
        """How many images a batch may have where `most` views fit into memory: 1 at least."""
        return max(1, most // VIEWS[self.views])

    def prediction_sets(
        self, probabilities: Float32[np.ndarray, "batch classes"], novelty: Float32[np.ndarray, " batch"] | None
    ) -> Bool[np.ndarray, "batch classes"] | None:
        """Whether each class is in the prediction set of each image; None where the card has no threshold.

        The set of an unfamiliar image is empty: none of the classes is likely. Without `novelty` no image is.
        """
        if self.calibration.threshold is None:
            return None
        sets = self.calibration.prediction_sets(probabilities)
        if self.familiarity is not None and novelty is not None:
            sets[self.familiarity.unfamiliar(novelty)] = False
        return sets

    def least_cost(self, probabilities: Float32[np.ndarray, "batch classes"]) -> Int64[np.ndarray, " batch"]:
        """Index of the action of the least expected cost for each image, with what `--balance` did to classes undone.

        Call it only if there are `costs`.
        """
        assert self.costs is not None
        correction = self.calibration.prior_correction
        return self.costs.least(correction(probabilities) if correction else probabilities.astype(np.float64))

    def to_json(self) -> str:
        """The card as text, in the form in which it is stored."""
        return _CARD.dump_json(self).decode()

    @classmethod
    def from_json(cls, text: str) -> "ModelCard":
        """Read a card. Raises CardError, which names an unknown version, or each missing, unknown or wrong field."""
        try:
            version = json.loads(text)["contract_version"]
        except (ValueError, KeyError, TypeError) as error:
            raise CardError("the card is not a JSON object with a contract_version") from error
        if version not in READABLE_VERSIONS:
            read = f"{READABLE_VERSIONS[0]} to {CONTRACT_VERSION}"
            raise CardError(f"the card is of contract version {version!r}; this side reads {read}")
        try:
            return _CARD.validate_json(text)
        except ValidationError as error:
            faults = "; ".join(f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in error.errors())
            raise CardError(f"the card does not fit the contract: {faults}") from error


_CARD = TypeAdapter(ModelCard)


class CardError(ValueError):
    """The text is not a card of this contract version."""
