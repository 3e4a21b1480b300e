from pathlib import Path
from typing import Any

import pytest
import torch

from serving.contract.model import open_model
from training.data.dataset import Dataset, load_dataset
from training.engine import checkpoint
from training.models import networks
from training.options.config import TrainConfig

OPTIONS: dict[str, Any] = {"model": "mlp", "hidden": (32,), "image_size": 24}


@pytest.fixture(scope="package")
def dataset(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """The images of the tiny run, on splits of their own."""
    return load_dataset(TrainConfig(data=photos, out=tmp_path_factory.mktemp("runs"), **OPTIONS))


@pytest.fixture
def model(run: Path, dataset: Dataset) -> torch.nn.Sequential:
    """The trained model of the tiny run, in torch."""
    card = open_model(run / "model.onnx").card
    built = networks.build(TrainConfig(**OPTIONS), dataset.preprocessing, card.normalization, len(card.classes))
    built.load_state_dict(checkpoint.load(run / "checkpoints" / "best.pt", torch.device("cpu"))["model"])
    return built
