"""The ONNX file: the network with its softmax as one graph, and the model card in its metadata."""

import copy
import io
import warnings

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import numpy_helper
from onnx.utils import Extractor
from torch import Tensor, nn

from serving.contract.card.model_card import INPUT_NAME, METADATA_KEY, OUTPUT_NAME, ModelCard
from serving.contract.session import RUNTIME_ERRORS
from training.errors import ConfigError
from training.export.novelty_graph import add_outputs
from training.metrics.familiarity.novelty import Detector
from training.models import backbones

OPSET = 17
EXPORT_ERRORS: tuple[type[Exception], ...] = (RuntimeError, *RUNTIME_ERRORS)
"""What tracing raises, among it the exporter's own errors, and opening a graph."""
FIRST_LAYER = "/model/model.0/"
"""Prefix of the names of the first layer's nodes: the exporter makes it of the attributes of `_WithSoftmax`."""


class _WithSoftmax(nn.Module):
    """What the graph computes: uint8 images `[batch, height, width, channels]` -> probabilities `[batch, classes]`."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.model(images)
        return logits.softmax(1)


def serialize(model: nn.Sequential, card: ModelCard, detector: Detector | None = None) -> bytes:
    """The bytes of the ONNX file of `model`: opset 17, a dynamic batch, no external data, `card` in the metadata.

    Its outputs are probabilities, the embedding, and with a detector novelty. The model itself, its device and its mode
    are not changed.
    """
    preprocessing = card.preprocessing
    file = onnx.load_from_string(graph(model, (preprocessing.height, preprocessing.width, preprocessing.channels)))
    add_outputs(file, detector)
    onnx.helper.set_model_props(file, {METADATA_KEY: card.to_json()})
    onnx.checker.check_model(file, full_check=True)
    return bytes(file.SerializeToString())


def graph(model: nn.Sequential, shape: tuple[int, ...]) -> bytes:
    """The graph of `model` and its softmax for images of `shape` (height, width, channels), without a card."""
    return _trace(_WithSoftmax(_prepared(model)), shape)


def check_exports(model: nn.Sequential, name: str, shape: tuple[int, ...]) -> None:
    """Refuse an architecture that cannot become a file, hours before it would be exported. Raises ConfigError.

    Takes a second or two of a start.
    """
    try:
        onnxruntime.InferenceSession(graph(model, shape), providers=["CPUExecutionProvider"])
    except EXPORT_ERRORS as error:
        reason = str(error).strip().partition("\n")[0]
        raise ConfigError(f"--model {name}: cannot be exported to ONNX, opset {OPSET} ({reason})") from error


def features_graph(body: nn.Sequential, shape: tuple[int, ...]) -> bytes:
    """The graph of a network's body, uint8 images of `shape` -> features, without a card."""
    return _trace(_prepared(body), shape)


def _prepared(model: nn.Sequential) -> nn.Module:
    return backbones.for_export(copy.deepcopy(model).cpu().eval())


def _trace(function: nn.Module, shape: tuple[int, ...]) -> bytes:
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        # The TorchScript exporter is deprecated. The new one needs another package, and it has exported networks like
        # these wrongly (pytorch issue 169178). parity.py checks the result of either.
        warnings.simplefilter("ignore", DeprecationWarning)
        # Tracing keeps every size but the batch as a constant. It is one: the graph takes images of one size.
        warnings.simplefilter("ignore", torch.jit.TracerWarning)  # type: ignore[attr-defined]
        torch.onnx.export(
            function.eval(),
            (torch.zeros((1, *shape), dtype=torch.uint8),),
            buffer,  # type: ignore[arg-type]  # a file object works too
            dynamo=False,
            opset_version=OPSET,
            input_names=[INPUT_NAME],
            output_names=[OUTPUT_NAME],
            dynamic_axes={INPUT_NAME: {0: "batch"}, OUTPUT_NAME: {0: "batch"}},
        )
    return bytes(_with_constant_padding(onnx.load_from_string(buffer.getvalue()), shape).SerializeToString())


def _with_constant_padding(file: onnx.ModelProto, shape: tuple[int, ...]) -> onnx.ModelProto:
    """The graph with constants where it computes padding from the size of its input, as TensorFlow's "SAME" does.

    The size is fixed, hence the padding. ONNX Runtime merges only constant padding into convolutions:
    EfficientNet-Lite0 answers one image of 224 px on one thread 1.3 times as fast.
    """
    computed = {name for node in file.graph.node if node.op_type != "Constant" for name in node.output}
    pads = [node for node in file.graph.node if node.op_type == "Pad" and node.input[1] in computed]
    if not pads:
        return file
    names = [node.input[1] for node in pads]
    outputs = [output.name for output in file.graph.output]
    file.graph.output.extend(onnx.ValueInfoProto(name=name) for name in dict.fromkeys(names))
    session = onnxruntime.InferenceSession(file.SerializeToString(), providers=["CPUExecutionProvider"])
    values = session.run(names, {INPUT_NAME: np.zeros((1, *shape), np.uint8)})
    for node, value in zip(pads, values, strict=True):
        node.input[1] = f"{node.name}/padding"
        file.graph.initializer.append(numpy_helper.from_array(value, node.input[1]))
    return Extractor(file).extract_model([INPUT_NAME], outputs)
