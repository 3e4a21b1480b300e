"""Views of images, and the mean over them, against what is made by hand."""

import numpy as np
import pytest
import torch

from serving.contract.card.model_card import VIEWS, Normalization, Views
from serving.contract.decode import Preprocessing
from training.models import networks, views
from training.options.config import TrainConfig

CORNERS = np.array([[1, 2], [3, 4]], np.float32)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("none", ["1234"]),
        ("flips", ["1234", "2143"]),
        ("turns", ["1234", "2143", "3412", "4321", "1324", "2413", "3142", "4231"]),
    ],
)
def test_views_are_the_flips_and_turns_of_a_square(kind: Views, expected: list[str]) -> None:
    shown = views.shown_in(kind, torch.from_numpy(CORNERS)[None, None])
    found = ["".join(f"{value:.0f}" for value in one.flatten().tolist()) for one in shown]
    assert sorted(found) == sorted(expected)
    assert found[0] == "1234", "the image as it is comes first"
    assert len(found) == VIEWS[kind]


@pytest.mark.parametrize("kind", ["flips", "turns"])
def test_logits_are_the_mean_of_those_of_images_turned_by_hand(kind: Views) -> None:
    torch.manual_seed(0)
    made = Preprocessing(height=12, width=12, channels=3, interpolation="area", fit="stretch", fill=0)
    standard = Normalization(mode="standard", mean=(0.5,) * 3, std=(0.5,) * 3, max_pixel_value=255.0)
    model = networks.build(TrainConfig(model="cnn", width=8), made, standard, 3).eval()
    images = np.random.default_rng(0).integers(0, 256, (5, 12, 12, 3), dtype=np.uint8)
    turned = [np.rot90(images, quarters, axes=(1, 2)) for quarters in (range(4) if kind == "turns" else range(1))]
    by_hand = [one for each in turned for one in (each, each[:, :, ::-1])]
    with torch.inference_mode():
        expected = torch.stack([model(torch.from_numpy(one.copy())) for one in by_hand]).mean(0)
        plain = model(torch.from_numpy(images))
        views.average(model, kind)
        assert model(torch.from_numpy(images)).numpy() == pytest.approx(expected.numpy(), abs=1e-5)
        assert not np.allclose(plain, expected, atol=1e-3), "the views of noise have other logits"
        assert torch.equal(views.without(model)(torch.from_numpy(images)), plain)
    assert views.count(model) == len(by_hand) == VIEWS[kind]
