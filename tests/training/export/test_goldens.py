from dataclasses import replace
from io import BytesIO
from pathlib import Path

import cv2
import numpy as np
import onnxruntime
import pytest
import torch
from PIL import Image
from torch import nn

from serving.contract.card.model_card import Golden
from serving.contract.decode import Channels, Preprocessing
from serving.contract.model import open_model
from serving.contract.scene import Scene
from tests.support.pictures import opened
from training.export.goldens import CANDIDATES, KINDS, goldens


def _pixels(example: Golden) -> np.ndarray:
    if isinstance(example.image, Scene):
        return example.image.draw()
    picture: Image.Image = Image.open(BytesIO(example.image))
    if picture.mode == "RGBA" or picture.format == "GIF":
        picture = picture.convert("RGBA")
        return np.asarray(Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture).convert("RGB"))
    return opened(example.image)


def test_goldens_hold_what_the_evaluated_model_says(run: Path, model: nn.Sequential) -> None:
    examples = goldens(model, open_model(run / "model.onnx").card.preprocessing)
    session = onnxruntime.InferenceSession(run / "model.onnx", providers=["CPUExecutionProvider"])
    for example in examples:
        pixels = cv2.resize(_pixels(example), (24, 24), interpolation=cv2.INTER_AREA)
        [probabilities] = session.run(None, {"images": pixels[None]})[0]
        assert np.abs(probabilities - np.array(example.probabilities, np.float32)).max() < 1e-5
    assert len({example.probabilities for example in examples}) > 1


def test_of_the_candidates_the_one_is_taken_that_shows_most(run: Path, model: nn.Sequential) -> None:
    card = open_model(run / "model.onnx").card
    assert card.goldens == goldens(model, card.preprocessing), "the same at every call"
    [png, *_] = card.goldens
    shown = max(png.probabilities)
    for seed in range(CANDIDATES):
        scene = Scene(height=KINDS[0].height, width=KINDS[0].width, seed=seed).draw()
        pixels = card.preprocessing.fitted(scene)
        with torch.no_grad():
            sure = float(model(torch.from_numpy(pixels[None])).softmax(1).max())
        assert shown <= sure + 1e-5


@pytest.mark.parametrize("channels", [1, 3])
def test_goldens_are_made_for_every_input(channels: Channels) -> None:
    class Sums(nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return images.float().flatten(1)[:, :3] / 255

    preprocessing = Preprocessing(height=12, width=20, channels=3, interpolation="area", fit="pad")
    model = nn.Sequential(Sums(), nn.Linear(3, 2))
    examples = goldens(model, replace(preprocessing, channels=channels))
    assert len({example.pixels for example in examples}) == len(examples)
