from pathlib import Path

import pytest

from serving.contract.card.model_card import ModelCard
from serving.contract.model import open_model


@pytest.fixture(scope="session")
def card(run: Path) -> ModelCard:
    return open_model(run / "model.onnx").card
