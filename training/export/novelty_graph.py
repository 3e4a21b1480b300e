"""The outputs of the ONNX file beside the probabilities: the embedding, and novelty computed from it."""

from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from serving.contract.card.model_card import EMBEDDING_NAME, NOVELTY_NAME
from training.metrics.familiarity.novelty import SMALLEST_LENGTH, Detector

HEAD = "/model/model.2/"
"""Prefix of the names of the head's nodes, as `onnx.FIRST_LAYER`."""


def add_outputs(file: onnx.ModelProto, detector: Detector | None) -> None:
    """Add the output `embedding`, float32 `[batch, features]` of length 1, and with a detector `novelty`, `[batch]`.

    The nodes before them are not changed, hence neither are the probabilities.
    """
    [linear] = [node for node in file.graph.node if node.op_type == "Gemm" and node.name.startswith(HEAD)]
    features = next(len(numpy_helper.to_array(one)[0]) for one in file.graph.initializer if one.name == linear.input[1])
    _add(file, "ReduceL2", [linear.input[0]], "length", axes=[1], keepdims=1)
    _add(file, "Max", ["length", _constant(file, "smallest", SMALLEST_LENGTH)], "divisor")
    _add(file, "Div", [linear.input[0], "divisor"], EMBEDDING_NAME)
    _output(file, EMBEDDING_NAME, ["batch", features])
    if detector is None:
        return
    values = {name: _constant(file, name, value) for name, value in vars(detector).items()}
    _add(file, "Sub", [EMBEDDING_NAME, values["centre"]], "centred")
    _add(file, "ReduceSumSquare", ["centred"], "radius", axes=[1], keepdims=0)
    _add(file, "Mul", ["radius", values["scale"]], "scaled")
    _add(file, "MatMul", ["centred", values["directions"]], "along")
    _add(file, "ReduceSumSquare", ["along"], "explained", axes=[1], keepdims=0)
    _add(file, "Sub", ["scaled", "explained"], "unexplained")
    _add(file, "Gemm", ["centred", values["slopes"], values["offsets"]], "distances")
    _add(file, "ReduceMin", ["distances"], "nearest", axes=[1], keepdims=0)
    _add(file, "Add", ["unexplained", "nearest"], "square")
    _add(file, "Relu", ["square"], "positive")
    _add(file, "Sqrt", ["positive"], NOVELTY_NAME)
    _output(file, NOVELTY_NAME, ["batch"])


def _add(file: onnx.ModelProto, operator: str, inputs: list[str], output: str, **attributes: Any) -> None:
    node = onnx.helper.make_node(operator, inputs, [output], name=f"/novelty/{output}", **attributes)
    file.graph.node.append(node)


def _constant(file: onnx.ModelProto, name: str, value: np.ndarray | float) -> str:
    file.graph.initializer.append(numpy_helper.from_array(np.asarray(value, np.float32), f"novelty.{name}"))
    return f"novelty.{name}"


def _output(file: onnx.ModelProto, name: str, shape: list[str | int]) -> None:
    file.graph.output.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape))
