import pytest
import torch
from torch import nn

from training.models.ema import ExponentialMovingAverage


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))


def change(model: nn.Module, step: int) -> None:
    generator = torch.Generator().manual_seed(step)
    with torch.no_grad():
        for tensor in [*model.parameters(), *(buffer for buffer in model.buffers() if buffer.is_floating_point())]:
            tensor += torch.rand(tensor.shape, generator=generator)


@pytest.mark.parametrize("decay", [0.5, 0.999])
def test_it_is_the_recursion_worked_by_hand(decay: float) -> None:
    """average = d average + (1 - d) weights with d = min(decay, (1 + t) / (10 + t)), from the first step on."""
    model = network()
    average = ExponentialMovingAverage(model, decay)
    by_hand: dict[str, torch.Tensor] = {}
    for step in range(30):
        change(model, step)
        average.update(model)
        now = {name: tensor.double() for name, tensor in model.state_dict().items()}
        d = min(decay, (1 + step) / (10 + step)) if step else 0.0
        by_hand = {name: d * by_hand.get(name, 0.0) + (1 - d) * tensor for name, tensor in now.items()}
    assert average.steps == 30
    for name, tensor in average.model.state_dict().items():
        if tensor.is_floating_point():
            assert torch.allclose(tensor.double(), by_hand[name], rtol=1e-5), name
            assert not torch.allclose(tensor, model.state_dict()[name], rtol=1e-2), name


def test_without_a_decay_it_is_the_model_itself() -> None:
    model = network()
    average = ExponentialMovingAverage(model, 0.0)
    average.update(model)
    assert average.model is model
    assert average.steps == 0


def test_the_model_that_learns_is_not_touched() -> None:
    model = network()
    average = ExponentialMovingAverage(model, 0.9)
    change(model, 1)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for _ in range(3):
        average.update(model)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
