import math
from typing import Any, Literal

import pytest
import torch
from torch import nn

from serving.contract.card.model_card import Normalization
from serving.contract.decode import Preprocessing
from training.models.initialization import METHODS, initialize
from training.models.networks import build
from training.options.choices import Init
from training.options.config import TrainConfig

SPEC = Normalization(mode="standard", mean=(0.5,) * 3, std=(0.25,) * 3, max_pixel_value=255.0)
PREPROCESSING = Preprocessing(height=32, width=32, channels=3, interpolation="area")


def fresh(**options: Any) -> nn.Sequential:
    torch.manual_seed(0)
    return build(TrainConfig(**options), PREPROCESSING, SPEC, 10)


def layers(model: nn.Module) -> list[nn.Linear | nn.Conv2d]:
    return [layer for layer in model.modules() if isinstance(layer, (nn.Linear, nn.Conv2d))]


def fans(layer: nn.Linear | nn.Conv2d) -> tuple[int, int]:
    """From the definition: how many values reach one output, and how many outputs one value reaches."""
    if isinstance(layer, nn.Linear):
        return layer.in_features, layer.out_features
    return layer.in_channels * math.prod(layer.kernel_size), layer.out_channels * math.prod(layer.kernel_size)


DEVIATIONS = {
    "uniform": lambda fan_in, fan_out: 0.1 / math.sqrt(12),
    "normal": lambda fan_in, fan_out: 0.05,
    "xavier_uniform": lambda fan_in, fan_out: math.sqrt(2 / (fan_in + fan_out)),
    "xavier_normal": lambda fan_in, fan_out: math.sqrt(2 / (fan_in + fan_out)),
    "he_uniform": lambda fan_in, fan_out: math.sqrt(2 / fan_in),
    "he_normal": lambda fan_in, fan_out: math.sqrt(2 / fan_in),
}


@pytest.mark.parametrize("kind", ["mlp", "cnn"])
@pytest.mark.parametrize("method", DEVIATIONS)
def test_every_layer_has_the_deviation_of_the_paper(method: Init, kind: Literal["mlp", "cnn"]) -> None:
    model = fresh(model=kind)
    initialize(model, method)
    for layer in layers(model):
        values = layer.weight.detach().flatten()
        expected = DEVIATIONS[method](*fans(layer))
        by_chance = expected / math.sqrt(2 * len(values))
        assert float(values.std()) == pytest.approx(expected, abs=5 * by_chance)
        assert float(values.mean()) == pytest.approx(0, abs=5 * expected / math.sqrt(len(values)))
        if "uniform" in method:
            assert float(values.abs().max()) <= math.sqrt(3) * expected * (1 + 1e-6)
        else:
            assert float(values.abs().max()) > 2 * expected


@pytest.mark.parametrize("kind", ["mlp", "cnn"])
@pytest.mark.parametrize("method", METHODS)
def test_biases_are_zero_and_normalisation_is_left_alone(method: Init, kind: Literal["mlp", "cnn"]) -> None:
    model = fresh(model=kind, batch_norm=True)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    initialize(model, method)
    assert all(not layer.bias.any() for layer in layers(model) if layer.bias is not None)
    ours = {
        f"{name}.{part}"
        for name, layer in model.named_modules()
        if layer in layers(model)
        for part in ("weight", "bias")
    }
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items() if name not in ours)
    assert any(not torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_default_is_what_the_layers_made() -> None:
    for batch_norm in (True, False):
        model = fresh(model="cnn", batch_norm=batch_norm)
        before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        initialize(model, "default")
        assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_equal_weights_stay_equal_and_hardly_learn() -> None:
    """Every unit of a layer gets the same gradient: the network is as wide as one unit."""
    images = torch.randint(0, 256, (40, 32, 32, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(40) % 10
    final = {}
    for method in ("constant", "he_normal"):
        model = fresh(model="mlp", hidden=(16, 8))
        initialize(model, method)
        optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
        for _ in range(150):
            loss = nn.functional.cross_entropy(model(images), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        final[method] = float((model(images).argmax(1) == labels).float().mean())
        for layer in layers(model)[:-1]:
            apart = float((layer.weight - layer.weight[0]).detach().abs().max())
            assert (apart < 1e-6) == (method == "constant")
    assert final["he_normal"] > 0.9
    assert final["constant"] < 0.5


def test_scale_and_biases_are_as_documented() -> None:
    bounds: dict[Init, float] = {"uniform": 1.0, "normal": math.inf}
    for method, bound in bounds.items():
        model = fresh(model="mlp")
        initialize(model, method, scale=1.0, zero_biases=False)
        for layer in layers(model):
            assert 0.9 < float(layer.weight.detach().abs().max()) <= bound
            assert layer.bias is not None
            assert layer.bias.any()
    model = fresh(model="mlp")
    before = [layer.weight.clone() for layer in layers(model)]
    initialize(model, "default", zero_biases=True)
    assert all(torch.equal(layer.weight, weight) for layer, weight in zip(layers(model), before, strict=True))
    assert not any(layer.bias.any() for layer in layers(model) if layer.bias is not None)
