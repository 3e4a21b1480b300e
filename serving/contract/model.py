"""Open a model file, check it, and predict.

The trainer checks an exported file with the same `open_model`, so that its proof holds for the service.
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

# With TF32, the rounding error is larger than the tolerance of the golden examples.
CUDA = ("CUDAExecutionProvider", {"use_tf32": "0"})
CPU = "CPUExecutionProvider"


class ModelRefused(ValueError):
    """A model file that must not be used. The message names the file and the failed check."""


class Classifier:
    """A model file that passed all checks: its card and its graph.

    `digest` is the SHA-256 of the file, `provider` the execution provider of ONNX Runtime that runs the graph.
    """

    def __init__(self, path: Path, session: onnxruntime.InferenceSession, card: ModelCard, digest: Digest) -> None:
        self.path = path
        self.card = card
        self.digest = digest
        self.provider: str = session.get_providers()[0]
        self._session = session

    def predict(self, images: Images) -> Probabilities:
        """Uint8 images `[batch, height, width, channels]` to float32 probabilities `[batch, classes]`."""
        probabilities: Probabilities = self._session.run([OUTPUT_NAME], {INPUT_NAME: images})[0]
        return probabilities

    def release_memory(self) -> None:
        """Give back what larger batches than one image took of the host's memory, which ONNX Runtime would keep."""
        card = self.card.preprocessing
        options = onnxruntime.RunOptions()
        options.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
        image = np.zeros((1, card.height, card.width, card.channels), np.uint8)
        self._session.run([OUTPUT_NAME], {INPUT_NAME: image}, options)


def open_model(path: Path, *, require_gpu: bool = False, threads: int = 1) -> Classifier:
    """Open a model file and check it: the card must fit the graph, and each golden example must give its result.

    A prediction uses `threads` cores. The graph runs on a CUDA device if there is one; with `require_gpu`, it must be
    there. Raises ModelRefused.
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
    # Threads that wait in a loop take cores from decoding, also when the server is idle.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3
    try:
        # The session reads bytes, not a path, so that a graph with external data cannot read other files.
        return onnxruntime.InferenceSession(data, options, providers=[CUDA, CPU] if _has_cuda() else [CPU])
    except Exception as error:  # onnxruntime's exceptions share no base class
        raise ModelRefused(f"{path}: not a graph that onnxruntime can run ({error})") from error


def _has_cuda() -> bool:
    """Whether the driver has a device. Without a driver, ONNX Runtime logs an error and uses the CPU."""
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


def _golden_faults(classifier: Classifier) -> Iterator[str]:
    """Each golden example whose pixels or probabilities differ from those of the evaluation."""
    if not classifier.card.goldens:
        yield "the card has no golden example, so the model cannot be checked"
    for number, golden in enumerate(classifier.card.goldens):
        try:
            pixels = classifier.card.preprocessing(golden.image)
        except ImageError as error:
            yield f"golden {number}: cannot be decoded here ({error})"
            continue
        if pixel_digest(pixels) != golden.pixels:
            yield f"golden {number}: decoding and resizing do not give the pixels of the training side"
            continue
        probabilities = classifier.predict(pixels[np.newaxis])[0]
        if len(golden.probabilities) != len(probabilities):
            yield f"golden {number}: holds {len(golden.probabilities)} probabilities, not {len(probabilities)}"
            continue
        difference = float(np.abs(probabilities - np.array(golden.probabilities, np.float32)).max())
        if not difference <= TOLERANCE:
            yield f"golden {number}: a probability differs by {difference:.2g}; at most {TOLERANCE:g} is allowed"
