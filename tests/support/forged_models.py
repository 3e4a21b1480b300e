"""Model files whose card does not fit their graph, each with the reason for which it is refused."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from serving.contract.card.model_card import METADATA_KEY

Change = Callable[[onnx.ModelProto, dict[str, Any]], dict[str, Any] | None]
"""From a graph and its card as JSON value: the card that replaces it, None for no card."""


def rewritten(source: Path, target: Path, change: Change) -> Path:
    """A copy of a model file, its graph and card changed by `change(graph, card as JSON value)`."""
    graph = onnx.load(source)
    card = json.loads({entry.key: entry.value for entry in graph.metadata_props}[METADATA_KEY])
    changed = change(graph, card)
    onnx.helper.set_model_props(graph, {} if changed is None else {METADATA_KEY: json.dumps(changed)})
    onnx.save(graph, target)
    return target


def wider_batch(graph: onnx.ModelProto, card: dict[str, Any]) -> dict[str, Any]:
    graph.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 4
    return card


def renamed(graph: onnx.ModelProto, card: dict[str, Any]) -> dict[str, Any]:
    graph.graph.node.append(onnx.helper.make_node("Identity", ["probabilities"], ["scores"]))
    graph.graph.output[0].name = "scores"
    return card


def nan_for_black(graph: onnx.ModelProto, card: dict[str, Any]) -> dict[str, Any]:
    """0 / 0 for an image whose pixels are all 0; for any other image the output stays as it is."""
    nodes = [
        helper.make_node("Cast", ["images"], ["values"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMax", ["values"], ["most"], axes=[1, 2, 3], keepdims=0),
        helper.make_node("Div", ["most", "most"], ["one or nan"]),
        helper.make_node("Unsqueeze", ["one or nan", "axis"], ["factors"]),
    ]
    return _multiplied(graph, card, {"axis": np.array([1])}, nodes)


def failing(graph: onnx.ModelProto, card: dict[str, Any]) -> dict[str, Any]:
    """Of a black image every probability is NaN (0 / 0); a white one ends the run (an index out of range)."""
    constants = {"white": np.float32(255), "one": np.ones(1, np.float32), "axis": np.array([1])}
    nodes = [
        helper.make_node("Cast", ["images"], ["values"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMax", ["values"], ["most"], axes=[1, 2, 3], keepdims=0),
        helper.make_node("ReduceMin", ["values"], ["least"], axes=[1, 2, 3], keepdims=0),
        helper.make_node("Div", ["most", "most"], ["one or nan"]),
        helper.make_node("Div", ["least", "white"], ["share"]),
        helper.make_node("Cast", ["share"], ["index"], to=TensorProto.INT64),
        helper.make_node("Gather", ["one", "index"], ["one or failure"]),
        helper.make_node("Mul", ["one or nan", "one or failure"], ["factor"]),
        helper.make_node("Unsqueeze", ["factor", "axis"], ["factors"]),
    ]
    return _multiplied(graph, card, constants, nodes)


def one_at_a_time(graph: onnx.ModelProto, card: dict[str, Any]) -> dict[str, Any]:
    """A batch of two or more images ends the run (an index out of range), as a lack of memory does."""
    constants = {"first": np.int64(0), "one image": np.int64(1), "one": np.ones(1, np.float32)}
    nodes = [
        helper.make_node("Shape", ["images"], ["shape"]),
        helper.make_node("Gather", ["shape", "first"], ["batch"]),
        helper.make_node("Sub", ["batch", "one image"], ["others"]),
        helper.make_node("Gather", ["one", "others"], ["factors"]),
    ]
    return _multiplied(graph, card, constants, nodes)


def _multiplied(
    graph: onnx.ModelProto, card: dict[str, Any], constants: Mapping[str, Any], nodes: Sequence[onnx.NodeProto]
) -> dict[str, Any]:
    """Multiply the probabilities by the output `factors` of these nodes."""
    for node in graph.graph.node:
        node.output[:] = ["sound" if name == "probabilities" else name for name in node.output]
    for name, value in constants.items():
        graph.graph.initializer.append(numpy_helper.from_array(np.asarray(value), name))
    graph.graph.node.extend([*nodes, helper.make_node("Mul", ["sound", "factors"], ["probabilities"])])
    return card


def golden(card: dict[str, Any], **changes: object) -> dict[str, Any]:
    first, *others = card["goldens"]
    return card | {"goldens": [first | changes, *others]}


def another_scene(graph: onnx.ModelProto, card: dict[str, Any]) -> dict[str, Any]:
    *others, last = card["goldens"]
    return card | {"goldens": [*others, last | {"image": last["image"] | {"seed": 13}}]}


REFUSED: dict[str, tuple[Change, str]] = {
    "no card": (lambda graph, card: None, "contract_version"),
    "unknown version": (lambda graph, card: card | {"contract_version": 4}, "version 4; this side reads 1 to 3"),
    "another class": (lambda graph, card: card | {"classes": [*card["classes"], "more"]}, "names 4 classes"),
    "another size": (
        lambda graph, card: card | {"preprocessing": card["preprocessing"] | {"height": 32}},
        r"card says \[32, 24, 3\]",
    ),
    "too many thresholds": (
        lambda graph, card: card | {"calibration": card["calibration"] | {"class_thresholds": [0.1] * 4}},
        "4 thresholds of prediction sets for 3 classes",
    ),
    "a decision on no class": (
        lambda graph, card: (
            card | {"operating_points": [{"label": "d", "score": "sensitivity", "target": 0.9, "threshold": 0.5}]}
        ),
        "the card decides on d; expected classes of its own",
    ),
    "a limit without novelty": (
        lambda graph, card: card | {"familiarity": {"threshold": 1.5, "false_alarms": 0.05, "images": 99}},
        "the graph no output 'novelty'",
    ),
    "a fixed batch": (wider_batch, "must be dynamic"),
    "no such output": (renamed, "no output 'probabilities'"),
    "other decoded pixels": (lambda graph, card: golden(card, decoded="0" * 64), "golden 0: decoding does not"),
    "other pixels": (lambda graph, card: golden(card, pixels="0" * 64), "golden 0: resizing does not"),
    "other pixels, in version 2": (
        lambda graph, card: golden(card, decoded=None, pixels="0" * 64) | {"contract_version": 2},
        "golden 0: decoding and resizing do not",
    ),
    "another interpolation": (
        lambda graph, card: card | {"preprocessing": card["preprocessing"] | {"interpolation": "linear"}},
        "golden 0: resizing does not",
    ),
    "another scene": (another_scene, "golden 10: decoding does not"),
    "other probabilities": (
        lambda graph, card: golden(card, probabilities=[0, 0, 1]),
        "golden 0: a probability differs",
    ),
    "too few probabilities": (lambda graph, card: golden(card, probabilities=[1.0]), "golden 0: holds 1"),
    "an undecodable golden": (lambda graph, card: golden(card, image="AAAA"), "golden 0: cannot be decoded"),
    "no goldens": (lambda graph, card: card | {"goldens": []}, "no golden example"),
}
