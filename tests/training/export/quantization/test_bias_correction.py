from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process
from torch import Tensor, nn

from serving.contract.session import Placement, open_session
from training.export.onnx import graph
from training.export.quantization.bias_correction import correct_biases


class TwoConvolutions(nn.Module):
    """Pixels through a grouped and a depthwise convolution, each of whose outputs has a mean error after rounding."""

    def __init__(self) -> None:
        super().__init__()
        self.grouped = nn.Conv2d(4, 8, 1, groups=2)
        self.depthwise = nn.Conv2d(8, 8, 3, groups=8)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.depthwise(self.grouped(images.permute(0, 3, 1, 2) / 255).relu()).mean((2, 3))
        return logits


class Batches(CalibrationDataReader):  # type: ignore[misc]  # onnxruntime has no types
    def __init__(self, images: np.ndarray) -> None:
        self._batches: Iterator[np.ndarray] = iter(np.split(images, 4))

    def get_next(self) -> dict[str, np.ndarray] | None:
        batch = next(self._batches, None)
        return None if batch is None else {"images": batch}


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_mean_error_of_the_output_falls(tmp_path: Path, seed: int) -> None:
    torch.manual_seed(seed)
    images = np.random.default_rng(seed).integers(100, 256, (32, 12, 12, 4), dtype=np.uint8)
    source, prepared, target = (tmp_path / name for name in ("source.onnx", "prepared.onnx", "quantized.onnx"))
    source.write_bytes(graph(nn.Sequential(TwoConvolutions()), (12, 12, 4)))
    quant_pre_process(source, prepared, skip_symbolic_shape=True)
    options = {"quant_format": QuantFormat.QDQ, "per_channel": True, "op_types_to_quantize": ["Conv", "Relu"]}
    types = {"activation_type": QuantType.QUInt8, "weight_type": QuantType.QInt8}
    quantize_static(prepared, target, Batches(images), **options, **types)
    quantized = onnx.load(target)
    for tensor in quantized.graph.initializer:
        if tensor.data_type == onnx.TensorProto.INT8 and len(tensor.dims) == 4:
            coarse = np.rint(numpy_helper.to_array(tensor) / 16).clip(-7, 7) * 16  # far above the activations' error
            tensor.CopyFrom(numpy_helper.from_array(coarse.astype(np.int8), tensor.name))
    before = mean_error(prepared.read_bytes(), quantized, images)
    correct_biases(quantized, onnx.load(prepared), np.split(images, 4))
    assert mean_error(prepared.read_bytes(), quantized, images) < 0.2 * before


def mean_error(float32: bytes, quantized: onnx.ModelProto, images: np.ndarray) -> float:
    """Of the logits' means over the images, between both graphs: the largest difference."""
    expected, got = (
        np.log(session.run(None, {"images": images})[0]).mean(0)
        for session in (
            open_session(file, Placement(on="cpu"), threads=1) for file in (float32, quantized.SerializeToString())
        )
    )
    return float(np.abs(expected - got).max())
