import numpy as np
import pytest
import torch
from torch import nn

from serving.contract import Normalization, Preprocessing
from training.activations import VALUES_AT_MOST, observe
from training.config import TrainConfig
from training.models import Normalize, build

SPEC = Normalization(mode="standard", mean=(0.5,) * 3, std=(0.25,) * 3, max_pixel_value=255.0)
IMAGES = np.random.default_rng(0).integers(0, 256, (64, 16, 16, 3), dtype=np.uint8)


def test_units_that_never_answer_are_dead() -> None:
    layer, maps = nn.Linear(8 * 16 * 16, 10), nn.Conv2d(3, 8, 3, padding=1)
    with torch.no_grad():
        layer.bias[:4] = -1e6
        maps.bias[:2] = -1e6
    model = nn.Sequential(
        Normalize(SPEC), nn.Sequential(maps, nn.ReLU(), nn.Flatten(), layer, nn.ReLU(), nn.Linear(10, 2), nn.Tanh())
    )
    of_maps, of_units, of_tanh = observe(model, IMAGES)
    assert [seen.layer for seen in (of_maps, of_units, of_tanh)] == ["1.1", "1.4", "1.6"]
    assert of_maps.dead == pytest.approx(2 / 8)
    assert of_units.dead == pytest.approx(4 / 10)
    assert of_tanh.dead is None
    assert len(of_units.values) == 640
    assert 0 < len(of_maps.values) <= VALUES_AT_MOST
    assert np.mean(of_maps.values == 0) > 2 / 8


@pytest.mark.parametrize(("kind", "expected"), [("mlp", 2), ("cnn", 7)])
def test_every_activation_of_a_network_is_seen_once_and_nothing_stays(kind: str, expected: int) -> None:
    model = build(
        TrainConfig(model=kind, width=8), Preprocessing(height=16, width=16, channels=3, interpolation="area"), SPEC, 3
    ).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    generator = torch.get_rng_state()
    seen = observe(model, IMAGES)
    assert len({one.layer for one in seen}) == len(seen) == expected
    assert all(0 <= one.dead < 1 for one in seen)
    assert not any(layer._forward_hooks for layer in model.modules())
    assert model.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert torch.equal(generator, torch.get_rng_state()), "a run that is observed is the run that is not"
