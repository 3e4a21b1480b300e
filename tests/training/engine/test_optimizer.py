import subprocess
import sys
from copy import deepcopy
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from tests.support.configs import settled
from tests.support.paths import ROOT
from training.engine import optimizer
from training.models import backbones
from training.options.config import TrainConfig
from training.options.settled import SettledConfig


def config(**options: Any) -> SettledConfig:
    return settled(TrainConfig(**options), image_size=32, training_images=1000)


def rates(steps_an_epoch: int, **options: Any) -> np.ndarray:
    """The learning rate of every step of a run as a share of --lr, as the optimizer saw it, and one step beyond."""
    settled = config(lr=1.0, **options)
    stepper = optimizer.make(nn.Linear(2, 2), settled)
    schedule = optimizer.schedule(stepper, settled, steps_an_epoch)
    seen = []
    for _ in range(settled.epochs * steps_an_epoch + 1):
        seen.append(stepper.param_groups[0]["lr"])
        stepper.step()
        schedule.step()
    return np.array(seen)


def test_cosine_rises_then_falls_to_zero() -> None:
    seen = rates(10, epochs=10, warmup_epochs=2)
    assert seen[0] == 1 / 20
    assert seen.max() == seen[20] == 1
    assert np.all(np.diff(seen[:20]) > 0)
    assert np.all(np.diff(seen[20:]) < 0)
    assert seen[60] == pytest.approx(0.5)
    assert seen[100] == pytest.approx(0, abs=1e-12)


def test_step_is_a_tenth_from_half_and_a_hundredth_from_three_quarters() -> None:
    seen = rates(4, epochs=10, schedule="step")
    assert seen[:4].tolist() == [0.25, 0.5, 0.75, 1]
    assert set(seen[4:20]) == {1}
    assert seen[20:30] == pytest.approx(0.1)
    assert seen[30:40] == pytest.approx(0.01)


def test_constant_stays() -> None:
    assert set(rates(5, epochs=4, schedule="constant", warmup_epochs=0)) == {1}


def gradients(steps: int) -> list[torch.Tensor]:
    return list(torch.randn((steps, 4, 3), generator=torch.Generator().manual_seed(1)))


def trained(steps: int, **options: Any) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    layer = nn.Linear(3, 4, bias=False)
    start = layer.weight.detach().clone()
    stepper = optimizer.make(layer, config(**options))
    for gradient in gradients(steps):
        layer.weight.grad = gradient.clone()
        stepper.step()
    return start, layer.weight.detach()


def test_sgd_is_nesterov_with_an_l2_penalty() -> None:
    """Against torch's definition, by hand: b = 0.9 b + g, w -= lr (g + 0.9 b), with g = gradient + decay w."""
    weight, ours = trained(3, optimizer="sgd", lr=0.1, weight_decay=0.01)
    momentum = torch.zeros_like(weight)
    for gradient in gradients(3):
        gradient = gradient + 0.01 * weight
        momentum = 0.9 * momentum + gradient
        weight = weight - 0.1 * (gradient + 0.9 * momentum)
    assert torch.allclose(ours, weight, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", ["adamw", "adam", "sgd"])
def test_a_first_step_that_float16_leaves_out_leaves_nothing_behind(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "empty_like", lambda tensor, **_: torch.full_like(tensor, torch.nan))  # as memory may be
    layer = nn.Linear(3, 4)
    stepper, scaler = optimizer.make(layer, config(optimizer=name)), torch.amp.GradScaler("cpu")
    for gradient in (torch.inf, 1.0):
        before = layer.weight.detach().clone()
        for parameter in layer.parameters():
            parameter.grad = torch.full_like(parameter, gradient)
        scaler.scale(torch.ones(1))
        scaler.unscale_(stepper)
        scaler.step(stepper)
        scaler.update()
        assert torch.equal(layer.weight, before) == (gradient == torch.inf)
    assert layer.weight.isfinite().all()


@pytest.mark.parametrize("name", ["adamw", "adam"])
def test_adam_and_adamw_differ_in_where_the_decay_goes(name: str) -> None:
    """First step, by hand: the moments' ratio is the gradient's sign; AdamW shrinks the weight apart from it."""
    weight, ours = trained(1, optimizer=name, lr=0.1, weight_decay=0.5)
    [gradient] = gradients(1)
    expected = weight * (1 - 0.1 * 0.5) - 0.1 * gradient.sign()
    if name == "adam":
        expected = weight - 0.1 * (gradient + 0.5 * weight).sign()
    assert torch.allclose(ours, expected, rtol=0, atol=1e-5)


def test_only_what_learns_is_given_and_only_matrices_are_decayed() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 2))
    model[0].requires_grad_(False)
    settings = config(weight_decay=0.1, lr=1.0, body_lr=0.25)
    matrices, others, head, bias = optimizer.make(model, settings).param_groups
    shapes = [[tuple(one.shape) for one in group["params"]] for group in (matrices, others, head, bias)]
    assert shapes == [[], [(4,), (4,)], [(2, 4)], [(2,)]]
    assert [group["weight_decay"] for group in (matrices, others, head, bias)] == [0.1, 0, 0.1, 0]
    assert [group["lr"] for group in (matrices, others, head, bias)] == [0.25, 0.25, 1, 1]


def test_positions_and_tokens_are_not_decayed() -> None:
    body, _ = backbones.create(TrainConfig(model="vit_tiny_patch16_224"), 224, 3)
    matrices, others, *_ = optimizer.make(nn.Sequential(body, nn.Linear(192, 2)), config()).param_groups
    names = {id(parameter): name for name, parameter in body.named_parameters()}
    of_others = {names[id(parameter)] for parameter in others["params"] if parameter.ndim > 1}
    assert of_others == {"cls_token", "pos_embed"}
    assert all(parameter.ndim > 1 for parameter in matrices["params"])


def test_the_body_stands_still_while_the_head_begins() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 2))
    settings = config(epochs=4, freeze_epochs=2, warmup_epochs=1, lr=1.0)
    stepper = optimizer.make(model, settings)
    schedule = optimizer.schedule(stepper, settings, 5)
    for step in range(20):
        body, _, head, _ = (group["lr"] for group in stepper.param_groups)
        assert head > 0
        assert body == pytest.approx(min(head, max(0, step - 9) / 5)), "none in two epochs, then a warm-up of one"
        stepper.step()
        schedule.step()


@pytest.mark.parametrize("name", ["adamw", "adam", "sgd"])
def test_without_the_compiler_each_step_and_state_is_torchs_own(name: str) -> None:
    kind, own = optimizer.KINDS[name]  # type: ignore[index]
    ours, theirs = (nn.Linear(4, 3) for _ in range(2))
    theirs.load_state_dict(ours.state_dict())
    own = {**own, "lr": 0.1, "weight_decay": 0.2, "fused": True}
    mine = optimizer.without_compiler(kind)(ours.parameters(), **own)
    peer: torch.optim.Optimizer = kind(theirs.parameters(), **own)
    for _ in range(2):
        for model, stepper in ((ours, mine), (theirs, peer)):
            stepper.zero_grad()
            model(torch.ones(2, 4)).square().sum().backward()
            stepper.step()
        assert all(torch.equal(one, other) for one, other in zip(ours.parameters(), theirs.parameters(), strict=True))
        torch.testing.assert_close(mine.state_dict(), peer.state_dict(), rtol=0, atol=0)
        mine.load_state_dict(deepcopy(peer.state_dict()))
        peer.load_state_dict(deepcopy(mine.state_dict()))
    assert repr(mine) == repr(peer)


def test_a_step_does_not_import_the_compiler() -> None:
    """In a process of its own, as another test may have imported it."""
    script = """
import sys
import torch
from torch import nn
from tests.training.engine.test_optimizer import config
from training.engine import optimizer
from training.models import backbones
model, options = nn.Linear(3, 2), config()
stepper = optimizer.make(model, options)
schedule = optimizer.schedule(stepper, options, 2)
for _ in range(2):
    model(torch.ones(1, 3)).sum().backward()
    optimizer.clip(model, 1.0)
    stepper.step()
    schedule.step()
    stepper.zero_grad()
stepper.load_state_dict(stepper.state_dict())
assert "torch._dynamo" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", script], check=True, cwd=ROOT)
