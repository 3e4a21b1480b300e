from pathlib import Path

import cv2
import numpy as np
import onnxruntime
import torch

from tests.support.pictures import opened
from training.data.dataset import Dataset
from training.export.goldens import goldens


def test_goldens_hold_what_the_evaluated_model_says(run: Path, model: torch.nn.Sequential, dataset: Dataset) -> None:
    examples = goldens(model, dataset)
    session = onnxruntime.InferenceSession(run / "model.onnx", providers=["CPUExecutionProvider"])
    for example in examples:
        decoded = opened(example.image)
        pixels = cv2.resize(decoded, (24, 24), interpolation=cv2.INTER_AREA)
        [probabilities] = session.run(None, {"images": pixels[None]})[0]
        assert np.abs(probabilities - np.array(example.probabilities, np.float32)).max() < 1e-5
    assert len({example.probabilities for example in examples}) > 1
