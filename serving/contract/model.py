"""Open a model file, check it against its own card, replay its goldens, predict.

Nothing here knows HTTP. The trainer's parity gate opens the finished file through `open_model` too, so what it
proves is what the service does.
"""

import ctypes
import hashlib
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

import numpy as np
import onnxruntime
from jaxtyping import Float32, UInt8

from serving.contract.card import INPUT_NAME, METADATA_KEY, OUTPUT_NAME, TOLERANCE, CardError, ModelCard
from serving.contract.decode import Digest, pixel_digest
from serving.contract.image_header import ImageError

Images = UInt8[np.ndarray, "batch height width channels"]
Probabilities = Float32[np.ndarray, "batch classes"]

# TF32 would cost three digits of the fraction, more than the tolerance of the goldens.
CUDA = ("CUDAExecutionProvider", {"use_tf32": "0"})
CPU = "CPUExecutionProvider"


class ModelRefused(ValueError):
    """A model file that must not answer anyone; the message names the file and the check that failed."""


class Classifier:
    """An opened model file: its card and its graph, known to fit each other."""

    def __init__(self, path: Path, session: onnxruntime.InferenceSession, card: ModelCard, digest: Digest) -> None:
        self.path = path
        self.card = card
        self.digest = digest
        self.provider: str = session.get_providers()[0]
        self._session = session

    def predict(self, images: Images) -> Probabilities:
        """Probabilities float32 `[batch, classes]`, rows summing to 1, for uint8 images `[batch, h, w, channels]`."""
        probabilities: Probabilities = self._session.run([OUTPUT_NAME], {INPUT_NAME: images})[0]
        return probabilities


def open_model(path: Path, *, require_gpu: bool = False, threads: int = 1) -> Classifier:
    """Open a model file and let it prove itself: card against graph, then every golden replayed.

    `threads` is the number of cores one prediction may use. A CUDA device is used when there is one;
    `require_gpu` makes its absence an error. Raises ModelRefused.
    """
    data = _read(path)
    session = _session(path, data, threads)
    try:
        card = ModelCard.from_json(session.get_modelmeta().custom_metadata_map.get(METADATA_KEY, ""))
    except CardError as error:
        raise ModelRefused(f"{path}: {error}") from error
    classifier = Classifier(path, session, card, Digest(hashlib.sha256(data).hexdigest()))
    if require_gpu and classifier.provider != CUDA[0]:
        raise ModelRefused(f"{path}: a GPU is required, but the graph runs on {classifier.provider}")
    fault = next(chain(_graph_faults(session, card), _golden_faults(classifier)), None)
    if fault is not None:
        raise ModelRefused(f"{path}: {fault}")
    return classifier


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ModelRefused(f"{path}: cannot be read ({error.strerror})") from error


def _session(path: Path, data: bytes, threads: int) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # Spinning threads would take the cores away from decoding, and an idle server would not be idle.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3
    try:
        # From memory: a graph with external data cannot reach for other files.
        return onnxruntime.InferenceSession(data, options, providers=[CUDA, CPU] if _has_cuda() else [CPU])
    except Exception as error:  # onnxruntime's exceptions share no base class
        raise ModelRefused(f"{path}: not a graph that onnxruntime can run ({error})") from error


def _has_cuda() -> bool:
    """Ask the driver before onnxruntime tries: without one it logs an alarming error and falls back silently."""
    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        return False
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    count = ctypes.c_int(0)
    if driver.cuInit(0) != 0 or driver.cuDeviceGetCount(ctypes.byref(count)) != 0 or count.value == 0:
        return False
    onnxruntime.preload_dlls()
    return True


def _graph_faults(session: onnxruntime.InferenceSession, card: ModelCard) -> Iterator[str]:
    """Each way in which the graph is not what its card says."""
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


def _golden_faults(classifier: Classifier) -> Iterator[str]:
    """Each golden whose pixels or probabilities are not what they were when the model was evaluated."""
    if not classifier.card.goldens:
        yield "the card holds no golden example, so nothing can be replayed"
    for number, golden in enumerate(classifier.card.goldens):
        try:
            pixels = classifier.card.preprocessing(golden.image)
        except ImageError as error:
            yield f"golden {number}: cannot be decoded here ({error})"
            continue
        if pixel_digest(pixels) != golden.pixels:
            yield f"golden {number}: decoding and resizing give other pixels than in training"
            continue
        probabilities = classifier.predict(pixels[np.newaxis])[0]
        if len(golden.probabilities) != len(probabilities):
            yield f"golden {number}: holds {len(golden.probabilities)} probabilities, not {len(probabilities)}"
            continue
        difference = float(np.abs(probabilities - np.array(golden.probabilities, np.float32)).max())
        if not difference <= TOLERANCE:
            yield f"golden {number}: a probability differs by {difference:.2g}; at most {TOLERANCE:g} is allowed"
