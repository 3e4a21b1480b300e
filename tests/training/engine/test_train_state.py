from pathlib import Path

import torch
from torch import nn

from training.config import TrainConfig
from training.engine import checkpoint
from training.engine.train_state import Learner
from training.settled import settle


def learner(ema: float) -> Learner:
    config = settle(TrainConfig(ema=ema), image_size=16, training_images=100)
    return Learner.start(nn.Sequential(nn.Linear(100, 100)), config, steps_an_epoch=10)


def test_weights_are_stored_once_unless_an_average_is_kept(tmp_path: Path) -> None:
    sizes = {}
    for ema in (0.0, 0.9):
        checkpoint.save(learner(ema).state_dict(), tmp_path / f"{ema}.pt")
        sizes[ema] = (tmp_path / f"{ema}.pt").stat().st_size
    assert sizes[0.9] - sizes[0.0] > 0.9 * 100 * 101 * 4


def test_a_checkpoint_holds_both_what_learns_and_what_is_scored() -> None:
    one = learner(0.9)
    for _ in range(3):
        one.model(torch.ones(1, 100)).sum().backward()
        one.optimizer.step()
        one.schedule.step()
        one.average.update(one.model)
    state = one.state_dict()
    assert torch.equal(state["weights"]["0.weight"], one.model[0].weight)
    assert torch.equal(state["model"]["0.weight"], one.average.model[0].weight)
    assert not torch.equal(state["model"]["0.weight"], state["weights"]["0.weight"])
    assert state["averaged_steps"] == 3
    assert state["schedule"]["last_epoch"] == 3
    assert {float(entry["step"]) for entry in state["optimizer"]["state"].values()} == {3}
