"""The probes and a model that fails: a real file whose output is bad for certain images."""

from collections.abc import Callable
from pathlib import Path

import httpx
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from serving.inference.predictor import FAILURES
from tests.support.forged_models import rewritten
from tests.support.replies import error, metric
from tests.support.server import serving


def failing(graph: onnx.ModelProto, card: dict[str, object]) -> dict[str, object]:
    """Of a black image every probability is NaN (0 / 0); a white one ends the run (an index out of range)."""
    last = next(node for node in graph.graph.node if "probabilities" in node.output)
    last.output[list(last.output).index("probabilities")] = "sound"
    for name, value in {"white": np.float32(255), "one": np.ones(1, np.float32), "axis": np.array([1])}.items():
        graph.graph.initializer.append(numpy_helper.from_array(np.asarray(value), name))
    for node in (
        helper.make_node("Cast", ["images"], ["values"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMax", ["values"], ["most"], axes=[1, 2, 3], keepdims=0),
        helper.make_node("ReduceMin", ["values"], ["least"], axes=[1, 2, 3], keepdims=0),
        helper.make_node("Div", ["most", "most"], ["one_or_nan"]),
        helper.make_node("Div", ["least", "white"], ["share"]),
        helper.make_node("Cast", ["share"], ["index"], to=TensorProto.INT64),
        helper.make_node("Gather", ["one", "index"], ["one_or_failure"]),
        helper.make_node("Mul", ["one_or_nan", "one_or_failure"], ["factor"]),
        helper.make_node("Unsqueeze", ["factor", "axis"], ["factors"]),
        helper.make_node("Mul", ["sound", "factors"], ["probabilities"]),
    ):
        graph.graph.node.append(node)
    return card


def test_callers_and_probes_see_a_model_that_fails(run: Path, tmp_path: Path, png: Callable[..., bytes]) -> None:
    black, gray, white = (png(np.full((40, 40, 3), value, np.uint8)) for value in (0, 100, 255))
    model = rewritten(run / "model.onnx", tmp_path / "model.onnx", failing)
    with serving(model, BENTOML_HOME=str(tmp_path / "home")) as address:

        def answer(image: bytes) -> tuple[int, str | None]:
            reply = httpx.post(f"{address}/predict", files={"image": image})
            assert "Gather" not in reply.text
            return reply.status_code, None if reply.status_code == 200 else error(reply)

        def probes() -> list[int]:
            paths = ("/livez", "/readyz", "/v2/health/live", "/v2/health/ready")
            return [httpx.get(f"{address}{path}").status_code for path in paths]

        assert answer(gray) == (200, None)
        for _ in range(FAILURES + 1):  # an answer of the model, of which one image may be the reason
            assert answer(black) == (500, "model_output_invalid")
        assert probes() == [200] * 4
        for _ in range(FAILURES - 1):
            assert answer(white) == (500, "internal_error")
        assert probes() == [200] * 4
        assert answer(gray) == (200, None)  # in a row is what counts
        for _ in range(FAILURES):
            assert probes() == [200] * 4
            assert answer(white) == (500, "internal_error")
        assert probes() == [503] * 4
        assert error(httpx.get(f"{address}/livez")) == "model_lost"
        text = httpx.get(f"{address}/metrics").text
    assert metric(text, "twinlens_rejected_inputs_total", reason="model_output_invalid") == FAILURES + 1
