"""The first layer, normalisation, in torch and in the finished file, compared with Albumentations' `A.Normalize`."""

import copy
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from torch import Tensor, nn

from serving.contract.card.model_card import INPUT_NAME, ModelCard
from serving.contract.decode import Preprocessing
from training.export.onnx import FIRST_LAYER

NORMALIZATION_TOLERANCE = 1e-5
NORMALIZED = "normalized"


@dataclass(frozen=True, kw_only=True)
class NormalizationCheck:
    """The first layer, in torch and in the finished file, compared with `A.Normalize`.

    In mode `standard` a value depends on its byte and channel only. All 256 bytes of every channel are compared,
    exactly, so equality is a proof. The other modes measure each image: there test images are compared, within 1e-5.
    """

    mode: str
    compared: int
    """Values compared."""
    equal_in_torch: int
    equal_in_onnx: int

    @property
    def holds(self) -> bool:
        """Every value is equal in both."""
        return self.equal_in_torch == self.equal_in_onnx == self.compared

    def __str__(self) -> str:
        """One line for the message of ExportRefused."""
        return (
            f"first layer against A.Normalize, mode {self.mode}: of {self.compared} values "
            f"{self.equal_in_torch} equal in torch, {self.equal_in_onnx} in ONNX Runtime"
        )


def check_normalization(model: nn.Sequential, path: Path, card: ModelCard, images: np.ndarray) -> NormalizationCheck:
    """Compare the first layer of `model` and of the file at `path` with `A.Normalize`.

    `images`, uint8 `[images, height, width, channels]`, are what it is compared on unless the mode is `standard`.
    """
    from training.data.augmentation import pipeline  # noqa: PLC0415 (imports Albumentations)

    standard = card.normalization.mode == "standard"
    if standard:
        images = _every_value(card.preprocessing)
    witness = pipeline.reference(card.preprocessing, card.normalization)
    expected = torch.stack([witness(image=image)["image"] for image in images]).float()
    in_torch = copy.deepcopy(model[0]).cpu()(torch.from_numpy(images))
    in_onnx = torch.from_numpy(_with_first_layer_as_output(path).run([NORMALIZED], {INPUT_NAME: images})[0])

    def equal(computed: Tensor) -> Tensor:
        """Which values are equal, `[channels, values]`."""
        close = (computed - expected).abs() <= (0.0 if standard else NORMALIZATION_TOLERANCE)
        by_channel = close.transpose(0, 1).flatten(1)
        return by_channel[:, :256] if standard else by_channel  # later values repeat the first

    return NormalizationCheck(
        mode=card.normalization.mode,
        compared=equal(expected).numel(),
        equal_in_torch=int(equal(in_torch).sum()),
        equal_in_onnx=int(equal(in_onnx).sum()),
    )


def _every_value(preprocessing: Preprocessing) -> np.ndarray:
    """The fewest images that hold each of the 256 values in every channel; their first 256 pixels do, in order."""
    pixels = preprocessing.height * preprocessing.width
    values = np.arange(-(-256 // pixels) * pixels) % 256
    images = values.astype(np.uint8).reshape(-1, preprocessing.height, preprocessing.width, 1)
    return np.repeat(images, preprocessing.channels, axis=3)


def _with_first_layer_as_output(path: Path) -> onnxruntime.InferenceSession:
    """A session of the finished file that also gives what leaves its first layer, as `normalized`."""
    graph = onnx.load(path)
    last = [node for node in graph.graph.node if node.name.startswith(FIRST_LAYER)][-1]
    graph.graph.node.append(onnx.helper.make_node("Identity", [last.output[0]], [NORMALIZED]))
    graph.graph.output.append(onnx.helper.make_tensor_value_info(NORMALIZED, onnx.TensorProto.FLOAT, None))
    return onnxruntime.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
