"""The model card: one JSON value in the metadata of the ONNX file.

The trainer writes it and the service reads it. It holds all that the service must know about a model, so that a model
file needs no other file beside it.
"""

import json
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float32, Float64, Int64
from pydantic import ConfigDict, JsonValue, TypeAdapter, ValidationError

from serving.contract.decode import Digest, Preprocessing
from serving.contract.drift import Histogram
from serving.contract.scene import Scene

CONTRACT_VERSION = 3
"""Written. Also read: version 2, without `preprocessing.depth`, `goldens.decoded`, `calibration.bias`, `certificate`,
`calibration.class_thresholds`, `formats`, `operating_points`, `costs`, `statement`, `familiarity`, `neighbours` and
`views`; version 1, without `preprocessing.fit` and `preprocessing.fill` either."""
READABLE_VERSIONS = (1, 2, CONTRACT_VERSION)
METADATA_KEY = "twinlens"
INPUT_NAME = "images"
OUTPUT_NAME = "probabilities"
EMBEDDING_NAME = "embedding"
"""Of the output with what the last linear layer reads, scaled to length 1; files of older versions have none."""
NOVELTY_NAME = "novelty"
"""Of the output that `Familiarity` reads."""

TOLERANCE = 1e-4
"""Two probabilities are equal if they differ by at most this. Two processors do not compute equal float32 values."""

DecisionScore = Literal["sensitivity", "specificity", "precision"]
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
class Calibration:
    """How the validation split corrects the answers of the model.

    The graph adds `bias` to the logits (Menon et al. 2021, https://arxiv.org/abs/2007.07314), and divides them by
    `temperature` before the softmax (Guo et al. 2017, https://arxiv.org/abs/1706.04599).
    A class is in the prediction set of an image if its probability is at least `threshold`. The set contains the true
    class with probability `level`, for images exchangeable with those of the validation split (split conformal
    prediction, Angelopoulos and Bates 2021, https://arxiv.org/abs/2107.07511). If the validation split is too small,
    `threshold` is None. Where the card has a familiarity, thresholds and level are of familiar images.
    """

    temperature: float
    level: float
    threshold: float | None
    bias: tuple[float, ...] = ()
    """By class; empty: nothing is added."""
    class_thresholds: tuple[float | None, ...] = ()
    """By class, in place of `threshold`, so that the level holds for the images of that class; None: the class has too
    few validation images for one of its own. Empty: the level holds for all images together."""

    def prediction_sets(self, probabilities: Float32[np.ndarray, "batch classes"]) -> Bool[np.ndarray, "batch classes"]:
        """Whether each class is in the prediction set of each image. The most likely class always is.

        Call it only if there is a `threshold`.
        """
        assert self.threshold is not None
        own = self.class_thresholds or (self.threshold,)
        sets = probabilities >= np.array([self.threshold if value is None else value for value in own], np.float32)
        sets[np.arange(len(sets)), probabilities.argmax(1)] = True
        return sets


@dataclass(frozen=True, kw_only=True)
class OperatingPoint:
    """Decides for one class against all others: yes where its calibrated probability is at least `threshold`.

    The threshold reaches the `target` of the `score` on the validation split. It promises nothing for other images.
    """

    label: str
    """The class."""
    score: DecisionScore
    target: float
    threshold: float

    def decides(self, probabilities: Float32[np.ndarray, " images"]) -> Bool[np.ndarray, " images"]:
        """The decision for each of these probabilities of the class."""
        # In double precision, as `describe_batch` compares: rounded to float32, the threshold may pass a probability.
        decisions: np.ndarray = probabilities.astype(np.float64) >= self.threshold
        return decisions


@dataclass(frozen=True, kw_only=True)
class Costs:
    """A cost matrix (Elkan 2001): its actions are the classes, and perhaps others, such as `refer`."""

    actions: tuple[str, ...]
    matrix: tuple[tuple[float, ...], ...]
    """A row for each class of the model, in its order, and in it the cost of each action where that class is true."""

    def expected(self, probabilities: Float32[np.ndarray, "batch classes"]) -> Float64[np.ndarray, "batch actions"]:
        """The expected cost of each action, by the probabilities of the classes."""
        costs: np.ndarray = probabilities.astype(np.float64) @ np.array(self.matrix, np.float64)
        return costs

    def least(self, probabilities: Float32[np.ndarray, "batch classes"]) -> Int64[np.ndarray, " batch"]:
        """Index of the action of the least expected cost; of equal ones the first."""
        chosen: np.ndarray = self.expected(probabilities).argmin(1)
        return chosen


@dataclass(frozen=True, kw_only=True)
class Familiarity:
    """Decides which images are unfamiliar: those whose novelty is above `threshold`.

    Novelty is an output of the graph: the Mahalanobis distance from the nearest class of the training images (Lee et
    al. 2018, https://arxiv.org/abs/1807.03888). Of images exchangeable with those of the validation split, a share of
    `false_alarms` at most is unfamiliar, with a confidence of 90 % (Vovk 2012, https://arxiv.org/abs/1209.2673).
    """

    threshold: float
    false_alarms: float
    images: int
    """Of the validation split, which set the threshold."""

    def unfamiliar(self, novelty: Float32[np.ndarray, " images"]) -> Bool[np.ndarray, " images"]:
        """The decision for each of these values."""
        decisions: np.ndarray = novelty.astype(np.float64) > self.threshold  # as `describe_batch` compares
        return decisions


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
class PretrainedWeights:
    """The weights that training started from, which others made."""

    architecture: str
    name: str
    """Of the weights, such as `tf_efficientnet_lite0.in1k`, or of their file."""
    digest: Digest
    """SHA-256 of the file."""
    source: str
    """Package and version, repository and revision, or a path."""
    licence: str | None
    """None: the source states none."""


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """What is needed to train the model again."""

    created: str
    """Time in UTC, as in ISO 8601."""
    config: dict[str, JsonValue]
    data_digest: Digest
    checkpoint_digest: Digest
    """Of the weights: `export.provenance.digest_of_weights`; in cards of versions 1 and 2, of the checkpoint's file."""
    git_revision: str | None
    packages: dict[str, str]
    weights: PretrainedWeights | None = None
    """None: training started from random weights."""
    environment: dict[str, str] = field(default_factory=dict)
    """Interpreter, processor, threads, GPU and the like; empty in older cards."""


@dataclass(frozen=True, kw_only=True)
class Floor:
    """A demand on a score of the test split that the model meets."""

    name: str
    """Of a headline score, or `sensitivity:CLASS`."""
    least: float
    """What the lower limit of the score's 95 % interval must be at least."""
    lower: float
    """What it is."""


@dataclass(frozen=True, kw_only=True)
class Champion:
    """The model that was served when this one was judged, compared with it on the same test images."""

    digest: Digest
    """SHA-256 of its file."""
    version: str
    score: float
    """Its balanced accuracy."""
    difference: float
    """Balanced accuracy of the new model minus the champion's."""
    interval: tuple[float, float]
    """Paired 95 % interval of the difference."""
    p_value: float
    """McNemar's exact p that both are right equally often."""


@dataclass(frozen=True, kw_only=True)
class Certificate:
    """States that the rule of promotion held on the test split, and by which numbers (training/README.md)."""

    rule: Literal["better"]
    test_split: Digest
    """Of key, label and pixels of the test images."""
    images: int
    balanced_accuracy: float
    chance: float
    """The balanced accuracy of one answer for all images, which the model exceeds."""
    margin: float
    """The loss of balanced accuracy, declared before the training, that the champion's interval excludes."""
    floors: tuple[Floor, ...]
    champion: Champion | None
    """None: no model was served."""


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
    """Of the files that the model was trained and tested on, as keys of `image_header.FILE_EXTENSIONS`. Empty: the
    images were no files, or the card is older."""
    certificate: Certificate | None = None
    """None: the rule of promotion did not hold or was not asked, or the card is of version 1 or 2."""
    operating_points: tuple[OperatingPoint, ...] = ()
    """At most one of each class."""
    costs: Costs | None = None
    """What answers cost; None: nothing is known."""
    statement: str | None = None
    """Of which models scores, calibration and thresholds are, where they are not of this file's. None: of this one."""
    familiarity: Familiarity | None = None
    """None: the graph has no output NOVELTY_NAME, and the model says of no image that it is unfamiliar."""
    neighbours: Digest | None = None
    """`TrainingIndex.digest` of the file of training images that may be beside the model. None: there is none."""
    views: Views = "none"
    """Of each image, over which the graph takes the mean."""

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
