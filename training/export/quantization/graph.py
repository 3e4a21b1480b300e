"""The published graph in eight bits, with scales that training images set.

Weights and activations are quantised statically: the scale of every tensor is measured once. With dynamic quantisation
the scale would be that of the batch, and the result for an image would depend on the other images of its batch.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import onnx
from onnx.utils import Extractor
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process

from serving.contract.card.model_card import INPUT_NAME, OUTPUT_NAME
from training.data.dataset import Dataset
from training.errors import ExportRefused
from training.export.onnx import FIRST_LAYER
from training.export.quantization.bias_correction import correct_biases
from training.storage import copy_rows

CALIBRATION_IMAGES = 512
CALIBRATION_BATCH = 32
QUANTIZED_OPERATORS = ["Conv", "Gemm", "MatMul", "Add", "Relu", "Clip", "AveragePool", "GlobalAveragePool"]
"""Clip is ReLU6. Left in float32, it takes tensors out of integers and back: EfficientNet-Lite0 on 316 dermatoscopic
images of 96 px kept 90.8 % of its labels without it and 95.6 % with it, at 1.5 and 2.4 times the speed of float32."""


class _Calibration(CalibrationDataReader):  # type: ignore[misc]  # onnxruntime has no types
    """Up to 512 training images, evenly spread over the split, a batch at a time."""

    def __init__(self, dataset: Dataset, size: int) -> None:
        self._batches = _calibration_batches(dataset, size)

    def get_next(self) -> dict[str, np.ndarray] | None:
        batch = next(self._batches, None)
        return None if batch is None else {INPUT_NAME: batch}


def _calibration_batches(dataset: Dataset, size: int) -> Iterator[np.ndarray]:
    train = dataset.splits["train"]
    chosen = np.linspace(0, len(train) - 1, min(len(train), CALIBRATION_IMAGES)).astype(int)
    # All of one size: the calibrator stacks the batches.
    size = min(size, len(chosen))
    return (copy_rows(dataset.images, train[chosen[i : i + size]]) for i in range(0, len(chosen) - size + 1, size))


def quantized_graph(source: Path, dataset: Dataset, size: int) -> onnx.ModelProto:
    """The graph with QuantizeLinear and DequantizeLinear around each operator that runs in integers.

    `size` images go through it at a time, each in all its views. See
    https://onnxruntime.ai/docs/performance/model-optimizations/quantization.html. Raises ExportRefused and OSError.
    """
    with TemporaryDirectory() as folder:
        alone, prepared, target = (Path(folder) / f"{name}.onnx" for name in ("alone", "prepared", "quantized"))
        # A file and not the graph itself: of that, the weights are taken out, and a node Pad loses its widths.
        onnx.save(_probabilities_alone(onnx.load(source)), alone)
        with _refusals():
            quant_pre_process(alone, prepared, skip_symbolic_shape=True)
            float32 = onnx.load(prepared)
            quantize_static(
                prepared,
                target,
                _Calibration(dataset, size),
                quant_format=QuantFormat.QDQ,
                per_channel=True,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                op_types_to_quantize=QUANTIZED_OPERATORS,
                nodes_to_exclude=_kept_in_float32(float32),
                # The mean over the batches of their extremes, so that a single image widens no range: of the labels of
                # EfficientNet-Lite0 on those photographs, 96.1 % were kept instead of 95.1 %.
                extra_options={"CalibMovingAverage": True},
            )
        quantized = onnx.load(target)
    correct_biases(quantized, float32, _calibration_batches(dataset, size))
    return quantized


@contextmanager
def _refusals() -> Iterator[None]:
    """Turns what ONNX Runtime's quantiser raises, Python's errors of any kind, into ExportRefused."""
    try:
        yield
    except (OSError, MemoryError):
        raise
    except Exception as error:
        raise ExportRefused(f"ONNX Runtime cannot quantise the graph: {error}") from error


def _probabilities_alone(file: onnx.ModelProto) -> onnx.ModelProto:
    """The graph without embedding and novelty, whose numbers are of other features than an eight-bit network's."""
    return Extractor(file).extract_model([INPUT_NAME], [OUTPUT_NAME])


def _kept_in_float32(graph: onnx.ModelProto) -> list[str]:
    """Names of the nodes that stay in float32: normalisation, the first convolution, the head and what follows it.

    So does a depthwise convolution that follows the first one.

    They take little time, and quantising them loses most labels. The MLP on 2,129 dermatoscopic images kept 97.5 % of
    its labels with them quantised and 99.2 % without; the CNN on digits kept 98.0 % and 99.4 %. With the depthwise
    convolution quantised EfficientNet-Lite0 on 304 photographs of 224 px kept 95.1 %, without 96.1 %, equally fast.
    """
    nodes = graph.graph.node
    normalization = [node.name for node in nodes if node.name.startswith(FIRST_LAYER)]
    convolutions = [index for index, node in enumerate(nodes) if node.op_type == "Conv"]
    depthwise_second = len(convolutions) > 1 and _groups(nodes[convolutions[1]]) > 1
    leading = convolutions[1 if depthwise_second else 0] + 1 if convolutions else 0
    head = max(index for index, node in enumerate(nodes) if node.op_type in ("Gemm", "MatMul"))
    return [*normalization, *(node.name for node in (*nodes[:leading], *nodes[head:]))]


def _groups(convolution: onnx.NodeProto) -> int:
    return next((attribute.i for attribute in convolution.attribute if attribute.name == "group"), 1)
