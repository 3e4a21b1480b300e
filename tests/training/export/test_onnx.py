from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from serving.contract.card import METADATA_KEY
from serving.contract.model import open_model
from training.data.dataset import Dataset
from training.export.onnx import OPSET
from training.models.normalization import Temperature
from training.models.prediction import predict


def test_the_file_is_one_file_with_a_pinned_opset_and_a_dynamic_batch(run: Path) -> None:
    graph = onnx.load(run / "model.onnx", load_external_data=False)
    assert {entry.domain: entry.version for entry in graph.opset_import} == {"": OPSET}
    assert not any(tensor.external_data for tensor in graph.graph.initializer)
    assert [entry.key for entry in graph.metadata_props] == [METADATA_KEY]
    [images], [probabilities] = graph.graph.input, graph.graph.output
    assert images.type.tensor_type.elem_type == onnx.TensorProto.UINT8
    assert [dim.dim_value for dim in images.type.tensor_type.shape.dim] == [0, 24, 24, 3]
    assert (images.name, probabilities.name) == ("images", "probabilities")
    assert list((run / ".").glob("*.onnx*")) == [run / "model.onnx"]


@pytest.mark.parametrize("size", [1, 2, 7])
def test_probabilities_do_not_depend_on_the_batch(
    run: Path, model: torch.nn.Sequential, dataset: Dataset, size: int
) -> None:
    classifier = open_model(run / "model.onnx")
    images = dataset.images[:64]
    served = np.concatenate([classifier.predict(images[start : start + size]) for start in range(0, 64, size)])
    model.append(Temperature(classifier.card.calibration.temperature))
    assert np.abs(served - predict(model, images)).max() <= 1e-6
