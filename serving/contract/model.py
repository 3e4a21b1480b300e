"""Open a model file, check it, and predict.

The trainer checks an exported file with the same `open_model`, so that its proof holds for the service.
"""

import hashlib
import os
from collections.abc import Iterator, Sequence
from itertools import chain, repeat
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnxruntime
from jaxtyping import Float32, UInt8

from serving.contract.card.decisions import Costs
from serving.contract.card.model_card import (
    EMBEDDING_NAME,
    INPUT_NAME,
    METADATA_KEY,
    NOVELTY_NAME,
    OUTPUT_NAME,
    TOLERANCE,
    CardError,
    ModelCard,
)
from serving.contract.decode import Digest, pixel_digest
from serving.contract.files.names import neighbours_of
from serving.contract.files.signature import PublicKey, SignatureRefused
from serving.contract.formats.image_header import ImageError
from serving.contract.neighbours.file import NeighboursRefused, read_index
from serving.contract.neighbours.index import TrainingIndex
from serving.contract.scene import decoded
from serving.contract.session import CUDA, Placement, SessionError, open_session

Images = UInt8[np.ndarray, "batch height width channels"]
Probabilities = Float32[np.ndarray, "batch classes"]


class Answer(NamedTuple):
    """What a model gives for one image."""

    probabilities: Float32[np.ndarray, " classes"]
    novelty: float | None
    """None where the card has no `familiarity`."""
    embedding: Float32[np.ndarray, " features"] | None = None
    """Vectors of length 1; None where the model has no training images beside it."""


class Answers(NamedTuple):
    """What a model gives for a batch of images."""

    probabilities: Probabilities
    novelty: Float32[np.ndarray, " batch"] | None
    """None where the card has no `familiarity`."""
    embeddings: Float32[np.ndarray, "batch features"] | None = None
    """Vectors of length 1; None where the model has no training images beside it."""

    @classmethod
    def concatenate(cls, batches: Sequence["Answers"]) -> "Answers":
        """The answers of one model to several batches, as to one."""
        probabilities, *others = zip(*batches, strict=True)
        novelty, embeddings = (None if each[0] is None else np.concatenate(each) for each in others)
        return cls(np.concatenate(probabilities), novelty, embeddings)

    def first(self, images: int) -> "Answers":
        """The answers for the first images of the batch."""
        novelty = None if self.novelty is None else self.novelty[:images]
        embeddings = None if self.embeddings is None else self.embeddings[:images]
        return Answers(self.probabilities[:images], novelty, embeddings)


class ModelRefused(ValueError):
    """A model file that must not be used. The message names the file and the failed check."""


class Classifier:
    """A model file that passed all checks: its card and its graph.

    `digest` is the SHA-256 of the file, `provider` the execution provider of ONNX Runtime that runs the graph, and
    `index` the training images, if it was opened with them.
    """

    def __init__(self, path: Path, session: onnxruntime.InferenceSession, card: ModelCard, digest: Digest) -> None:
        self.path = path
        self.card = card
        self.digest = digest
        self.provider: str = session.get_providers()[0]
        self.index: TrainingIndex | None = None
        self._session = session
        self._outputs = [OUTPUT_NAME] if card.familiarity is None else [OUTPUT_NAME, NOVELTY_NAME]

    @property
    def on_gpu(self) -> bool:
        """Whether the graph runs on a GPU."""
        return self.provider == CUDA

    def attach(self, index: TrainingIndex) -> None:
        """Give embeddings from now on, which this index finds the nearest training images of. Raises ModelRefused."""
        features = [node.shape[-1] for node in self._session.get_outputs() if node.name == EMBEDDING_NAME]
        if self.card.familiarity is None or features != [index.points.shape[1]]:
            raise ModelRefused(f"{self.path}: its graph gives no embeddings of {index.points.shape[1]} features")
        if index.classes != self.card.classes:
            raise ModelRefused(f"{self.path}: the training images beside it have other classes")
        self._outputs = [OUTPUT_NAME, NOVELTY_NAME, EMBEDDING_NAME]
        self.index = index

    def predict(self, images: Images) -> Probabilities:
        """Uint8 images `[batch, height, width, channels]` to float32 probabilities `[batch, classes]`."""
        return self.answers(images).probabilities

    def answers(self, images: Images) -> Answers:
        """Probabilities as `predict` gives them, novelty, and with training images embeddings."""
        probabilities, *others = self._session.run(self._outputs, {INPUT_NAME: images})
        novelty, embeddings = (*others, None, None)[:2]
        return Answers(probabilities, novelty, embeddings)

    def rows(self, images: Images) -> list[Answer]:
        """What `answers` gives, image by image."""
        probabilities, novelty, embeddings = self.answers(images)
        novelties = repeat(None) if novelty is None else novelty.tolist()
        return list(map(Answer, probabilities, novelties, repeat(None) if embeddings is None else embeddings))

    def release_memory(self) -> None:
        """Give back what larger batches than one image took of the host's memory, which ONNX Runtime would keep."""
        card = self.card.preprocessing
        options = onnxruntime.RunOptions()
        options.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
        image = np.zeros((1, card.height, card.width, card.channels), np.uint8)
        self._session.run([OUTPUT_NAME], {INPUT_NAME: image}, options)


ANYWHERE = Placement()


def open_model(
    path: Path,
    *,
    placement: Placement = ANYWHERE,
    threads: int = 1,
    key: PublicKey | None = None,
    training_images: bool = False,
) -> Classifier:
    """Open a model file and check it: the card must fit the graph, and each golden example must give its result.

    With a `key`, its owner must have signed the file. With `training_images` the index beside it is read, if there is
    one. On the CPU, a prediction uses `threads` cores. Raises ModelRefused, MemoryError.
    """
    # What belongs to the file is in the same folder, also if a link such as `latest` moves meanwhile.
    file = Path(os.path.realpath(path.parent), path.name)
    data = _read_signed(path, file, key)
    try:
        session = open_session(data, placement, threads)
        card = ModelCard.from_json(session.get_modelmeta().custom_metadata_map.get(METADATA_KEY, ""))
    except (SessionError, CardError) as error:
        raise ModelRefused(f"{path}: {error}") from error
    classifier = Classifier(path, session, card, Digest(hashlib.sha256(data).hexdigest()))
    fault = next(chain(_graph_faults(session, card), _golden_faults(classifier)), None)
    if fault is not None:
        raise ModelRefused(f"{path}: {fault}")
    if training_images and card.neighbours is not None:
        _attach(classifier, card.neighbours, neighbours_of(file))
    return classifier


def _attach(classifier: Classifier, digest: Digest, file: Path) -> None:
    """Read the index of a model with this digest, if there is one. Raises ModelRefused."""
    try:
        classifier.attach(read_index(file, digest))
    except FileNotFoundError:
        return
    except NeighboursRefused as error:
        raise ModelRefused(str(error)) from error
    except OSError as error:
        raise ModelRefused(f"{file}: cannot be read ({error.strerror})") from error


def _read_signed(path: Path, file: Path, key: PublicKey | None) -> bytes:
    """The bytes of a file, which are read once: those that are verified are those that are loaded."""
    try:
        data = file.read_bytes()
        if key is not None:
            key.check(data, file)
    except OSError as error:
        raise ModelRefused(f"{path}: cannot be read ({error.strerror})") from error
    except SignatureRefused as error:
        raise ModelRefused(f"{path}: {error}") from error
    return data


def _graph_faults(session: onnxruntime.InferenceSession, card: ModelCard) -> Iterator[str]:
    """Each difference between the graph and its card."""
    expected = card.preprocessing
    images = {node.name: node for node in session.get_inputs()}.get(INPUT_NAME)
    probabilities = {node.name: node for node in session.get_outputs()}.get(OUTPUT_NAME)
    if images is None or probabilities is None:
        yield f"the graph has no input {INPUT_NAME!r} or no output {OUTPUT_NAME!r}"
        return
    if images.type != "tensor(uint8)":
        yield f"the graph takes {images.type}, not tensor(uint8)"
    size = [expected.height, expected.width, expected.channels]
    if images.shape[1:] != size:
        yield f"the graph takes images of {images.shape[1:]}, its card says {size} (height, width, channels)"
    if not isinstance(images.shape[0], str):
        yield f"the graph takes batches of {images.shape[0]} only; the batch must be dynamic"
    if probabilities.shape[1:] != [len(card.classes)]:
        yield f"the graph gives {probabilities.shape[1:]} probabilities, its card names {len(card.classes)} classes"
    novelty = {node.name: node for node in session.get_outputs()}.get(NOVELTY_NAME)
    if card.familiarity is not None and (novelty is None or len(novelty.shape) != 1):
        yield f"the card has a limit of novelty, the graph no output {NOVELTY_NAME!r} of one value an image"
    yield from _decision_faults(card)


def _decision_faults(card: ModelCard) -> Iterator[str]:
    """Each part of the card that decides and does not fit its classes."""
    thresholds, correction = card.calibration.class_thresholds, card.calibration.prior_correction
    if thresholds and len(thresholds) != len(card.classes):
        yield f"the card has {len(thresholds)} thresholds of prediction sets for {len(card.classes)} classes"
    if correction and len(correction.factors) != len(card.classes):
        yield f"the card corrects the priors of {len(correction.factors)} classes, it names {len(card.classes)}"
    decided = [point.label for point in card.operating_points]
    if len(set(decided)) < len(decided) or not set(decided) <= set(card.classes):
        yield f"the card decides on {', '.join(decided)}; expected classes of its own, each at most once"
    if card.costs and not _fits(card.costs, card.classes):
        yield "the cost matrix of the card does not fit its classes"


def _fits(costs: Costs, classes: tuple[str, ...]) -> bool:
    """Whether there is a row for each class, in it a cost for each action, and each class is an action."""
    rows = [len(row) for row in costs.matrix]
    return rows == [len(costs.actions)] * len(classes) and set(classes) <= set(costs.actions)


def _golden_faults(classifier: Classifier) -> Iterator[str]:
    """Each golden example whose pixels or probabilities differ from those of the evaluation."""
    preprocessing = classifier.card.preprocessing
    if not classifier.card.goldens:
        yield "the card has no golden example, so the model cannot be checked"
    for number, golden in enumerate(classifier.card.goldens):
        try:
            full = decoded(golden.image, preprocessing)
            pixels = preprocessing.fitted(full)
        except ImageError as error:
            yield f"golden {number}: cannot be decoded here ({error})"
            continue
        if golden.decoded is not None and pixel_digest(full) != golden.decoded:
            yield f"golden {number}: decoding does not give the pixels of the training side"
            continue
        if pixel_digest(pixels) != golden.pixels:
            steps = "decoding and resizing do" if golden.decoded is None else "resizing does"
            yield f"golden {number}: {steps} not give the pixels of the training side"
            continue
        probabilities = classifier.predict(pixels[np.newaxis])[0]
        if len(golden.probabilities) != len(probabilities):
            yield f"golden {number}: holds {len(golden.probabilities)} probabilities, not {len(probabilities)}"
            continue
        difference = float(np.abs(probabilities - np.array(golden.probabilities, np.float32)).max())
        if not difference <= TOLERANCE:
            yield f"golden {number}: a probability differs by {difference:.2g}; at most {TOLERANCE:g} is allowed"
