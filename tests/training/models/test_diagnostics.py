from typing import Literal

import numpy as np
import pytest
import torch
from torch import nn

from serving.contract.card.model_card import Normalization
from serving.contract.decode import Preprocessing
from training.models import backbones
from training.models.diagnostics import VALUES_AT_MOST, at_start, observe
from training.models.networks import build
from training.models.normalization import Normalize
from training.models.prediction import inference_batch
from training.options.config import TrainConfig

SPEC = Normalization(mode="standard", mean=(0.5,) * 3, std=(0.25,) * 3, max_pixel_value=255.0)
IMAGES = np.random.default_rng(0).integers(0, 256, (64, 16, 16, 3), dtype=np.uint8)


def test_units_that_never_answer_are_dead() -> None:
    layer, maps = nn.Linear(8 * 16 * 16, 10), nn.Conv2d(3, 8, 3, padding=1)
    assert maps.bias is not None
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


def test_large_images_are_observed_together_though_they_are_predicted_in_parts() -> None:
    images = np.zeros((130, 100, 100, 3), np.uint8)
    images[0] = 255  # every unit is alive for the first image alone
    layer = nn.Conv2d(3, 4, 1)
    with torch.no_grad():
        layer.weight.fill_(1)
        layer.bias.zero_()  # type: ignore[union-attr]
    [seen] = observe(nn.Sequential(Normalize(SPEC), layer, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()), images)
    assert inference_batch(100, 100) < len(images)
    assert seen.dead == 0
    assert VALUES_AT_MOST / 2 < len(seen.values) <= 1.1 * VALUES_AT_MOST


def test_an_activation_that_is_called_twice_in_a_pass_is_seen_twice() -> None:
    relu = nn.ReLU()
    body = nn.Sequential(nn.Conv2d(3, 4, 1), relu, nn.Conv2d(4, 6, 1), relu, nn.AdaptiveAvgPool2d(1), nn.Flatten())
    seen = observe(nn.Sequential(Normalize(SPEC), body), np.zeros((130, 100, 100, 3), np.uint8))
    assert len(seen) == 2


@pytest.mark.parametrize(("kind", "expected"), [("mlp", 2), ("cnn", 7)])
def test_every_activation_of_a_network_is_seen_once_and_nothing_stays(
    kind: Literal["mlp", "cnn"], expected: int
) -> None:
    model = build(
        TrainConfig(model=kind), Preprocessing(height=16, width=16, channels=3, interpolation="area"), SPEC, 3
    ).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    generator = torch.get_rng_state()
    seen = observe(model, IMAGES)
    assert len({one.layer for one in seen}) == len(seen) == expected
    assert all(one.dead is not None and 0 <= one.dead < 1 for one in seen)
    assert not any(layer._forward_hooks for layer in model.modules())
    assert model.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert torch.equal(generator, torch.get_rng_state()), "a run that is observed is the run that is not"


@pytest.mark.parametrize(
    ("kind", "dead"), [("ReLU6", True), ("SiLU", False), ("Hardswish", False), ("timm GELU", False)]
)
def test_activations_of_backbones_are_seen_as_they_were_before_the_next_layer_computes_in_place(
    kind: str, dead: bool
) -> None:
    library, name = (backbones.timm().layers.activations, kind[5:]) if kind.startswith("timm") else (nn, kind)
    body = nn.Sequential(nn.Conv2d(3, 4, 1), getattr(library, name)(), Halved(), nn.Conv2d(4, 4, 1), nn.Flatten())
    [seen] = observe(nn.Sequential(Normalize(SPEC), body), IMAGES)
    assert seen.layer == "1.1"
    assert (seen.dead is not None) is dead
    with torch.inference_mode():
        expected = body[1](body[0](Normalize(SPEC)(torch.from_numpy(IMAGES))))
    assert seen.values.max() == pytest.approx(expected.max().item(), rel=1e-5)


class Halved(nn.Module):
    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        return maps.mul_(0.5)


def test_without_activations_nothing_is_predicted() -> None:
    layer = nn.Linear(8, 2)
    layer.register_forward_pre_hook(lambda *_: pytest.fail("predicted"))
    features = np.ones((4, 8), np.float32)
    assert observe(nn.Sequential(layer, nn.Softmax(1), nn.MultiheadAttention(2, 1)), features) == []


def test_signal_and_gradient_before_the_first_step_and_the_network_stays_as_it_was() -> None:
    """A chain of linear layers, by hand: variances multiply forwards, gradients backwards."""
    torch.manual_seed(0)
    linear = [nn.Linear(3 * 16 * 16, 200), nn.Linear(200, 200), nn.Linear(200, 4)]
    for layer, scale in zip(linear, (1.0, 3.0, 1.0), strict=True):
        nn.init.normal_(layer.weight, std=scale / layer.in_features**0.5)
        nn.init.zeros_(layer.bias)
    model = nn.Sequential(Normalize(SPEC), nn.Sequential(nn.Flatten(), *linear)).eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    generator, labels = torch.get_rng_state(), np.arange(len(IMAGES)) % 4
    first, second, third = at_start(model, IMAGES, labels)
    assert [one.layer for one in (first, second, third)] == ["1.1", "1.2", "1.3"]
    assert first.output_variance
    assert second.output_variance
    assert second.output_variance / first.output_variance == pytest.approx(9, rel=0.4)
    assert first.gradient_variance
    assert second.gradient_variance
    assert first.gradient_variance / second.gradient_variance == pytest.approx(9, rel=0.4)
    logits = model(torch.from_numpy(IMAGES))
    torch.nn.functional.cross_entropy(logits, torch.from_numpy(labels)).backward()
    assert linear[2].weight.grad is not None
    assert third.weight_gradient_norm == pytest.approx(linear[2].weight.grad.norm().item(), rel=1e-5)
    assert third.output_variance == pytest.approx(logits.var().item(), rel=1e-5)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert torch.equal(generator, torch.get_rng_state())
    assert not model.training
    with torch.no_grad():
        linear[1].weight *= 1e30
    assert at_start(model, IMAGES, labels)[2].output_variance is None
