from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import numpy_helper

from serving.contract.card.model_card import METADATA_KEY
from serving.contract.model import open_model
from training.data.dataset import Dataset
from training.errors import ConfigError
from training.export.onnx import OPSET, graph
from training.models import backbones
from training.models.normalization import Calibrate
from training.models.prediction import predict
from training.options.config import TrainConfig
from training.train import train


def test_the_file_is_one_file_with_a_pinned_opset_and_a_dynamic_batch(run: Path) -> None:
    graph = onnx.load(run / "model.onnx", load_external_data=False)
    assert {entry.domain: entry.version for entry in graph.opset_import} == {"": OPSET}
    assert not any(tensor.external_data for tensor in graph.graph.initializer)
    assert [entry.key for entry in graph.metadata_props] == [METADATA_KEY]
    [images], [probabilities, embedding] = graph.graph.input, graph.graph.output
    assert images.type.tensor_type.elem_type == onnx.TensorProto.UINT8
    assert [dim.dim_value for dim in images.type.tensor_type.shape.dim] == [0, 24, 24, 3]
    assert (images.name, probabilities.name) == ("images", "probabilities")
    assert [dim.dim_value for dim in embedding.type.tensor_type.shape.dim] == [0, 32]
    assert list((run / ".").glob("*.onnx*")) == [run / "model.onnx"]


@pytest.mark.parametrize("size", [1, 2, 7])
def test_probabilities_do_not_depend_on_the_batch(
    run: Path, model: torch.nn.Sequential, dataset: Dataset, size: int
) -> None:
    classifier = open_model(run / "model.onnx")
    images = dataset.images[:64]
    served = np.concatenate([classifier.predict(images[start : start + size]) for start in range(0, 64, size)])
    model.append(Calibrate(classifier.card.calibration))
    assert np.abs(served - predict(model, images)).max() <= 1e-6


@pytest.mark.slow
def test_an_architecture_without_an_export_is_refused_before_it_trains(photos: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--model volo_d1_224: cannot be exported to ONNX, opset 17 .*col2im"):
        train(TrainConfig(data=photos, out=tmp_path, name="x", model="volo_d1_224", weights="none"))
    assert not (tmp_path / "x").exists()


class Padded(torch.nn.Module):
    """EfficientNet-Lite0 with uint8 images as its input, as the exported network takes them."""

    def __init__(self) -> None:
        super().__init__()
        config = TrainConfig(model="tf_efficientnet_lite0", weights="none")
        self.body = backbones.make(config, side=34, channels=3, classes=5)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.body(images.permute(0, 3, 1, 2) / 255)
        return logits


def test_padding_that_depends_on_the_size_of_the_image_is_a_constant() -> None:
    torch.manual_seed(0)
    model = torch.nn.Sequential(Padded()).eval()
    file = onnx.load_from_string(graph(model, (34, 34, 3)))
    assert {"Shape", "Ceil"}.isdisjoint(node.op_type for node in file.graph.node)
    constants = {tensor.name: tuple(numpy_helper.to_array(tensor)) for tensor in file.graph.initializer}
    padding = [constants[node.input[1]] for node in file.graph.node if node.op_type == "Pad"]
    assert (0, 0, 0, 0, 0, 0, 1, 1) in padding, "34 px, kernel 3, stride 2: one pixel on the right and below"
    images = torch.randint(0, 256, (3, 34, 34, 3), dtype=torch.uint8)
    session = onnxruntime.InferenceSession(file.SerializeToString(), providers=["CPUExecutionProvider"])
    with torch.no_grad():
        expected = model(images).softmax(1).numpy()
    assert np.abs(session.run(None, {"images": images.numpy()})[0] - expected).max() < 1e-5
