"""The outputs beside the probabilities, for networks with random weights."""

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from serving.contract.card.model_card import Normalization
from serving.contract.decode import Preprocessing
from training.export.novelty_graph import add_outputs
from training.export.onnx import graph
from training.metrics.familiarity.novelty import fit, unit
from training.models import networks, prediction
from training.options.config import TrainConfig

NORMALIZATION = Normalization(mode="standard", mean=(0.5,) * 3, std=(0.5,) * 3, max_pixel_value=255.0)
CONFIGS = {
    "mlp": TrainConfig(model="mlp", hidden=(16, 12)),
    "cnn": TrainConfig(model="cnn", width=8),
    "timm": TrainConfig(model="tf_efficientnet_lite0", weights="none"),
    "branches that are merged": TrainConfig(model="mobileone_s0", weights="none"),
}


def session(file: onnx.ModelProto) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(file.SerializeToString(), providers=["CPUExecutionProvider"])


@pytest.mark.parametrize("name", CONFIGS)
def test_probabilities_stay_to_the_bit_and_novelty_is_that_of_the_detector(name: str) -> None:
    torch.manual_seed(0)
    made = Preprocessing(height=32, width=32, channels=3, interpolation="area", fit="stretch", fill=0)
    model = networks.build(CONFIGS[name], made, NORMALIZATION, 3).eval()
    images = np.random.default_rng(0).integers(0, 256, (40, 32, 32, 3), dtype=np.uint8)
    features = prediction.outputs(networks.features_and_head(model)[0], images)
    detector = fit(features, np.arange(40) % 3)
    file = onnx.load_from_string(graph(model, (32, 32, 3)))
    [before] = session(file).run(None, {"images": images})
    add_outputs(file, detector)
    onnx.checker.check_model(file, full_check=True)
    probabilities, embedding, novelty = session(file).run(["probabilities", "embedding", "novelty"], {"images": images})
    assert np.array_equal(probabilities, before)
    assert embedding.dtype == novelty.dtype == np.float32
    assert embedding == pytest.approx(unit(features), abs=1e-5)
    assert novelty.shape == (40,)
    assert novelty == pytest.approx(detector.novelty(features), rel=1e-3)
