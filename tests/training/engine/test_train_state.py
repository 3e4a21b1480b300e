from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from tests.support.configs import settled
from training.data.loader import Batches, TrainingSet
from training.engine import checkpoint
from training.engine.objective import Objective
from training.engine.train_state import TrainState
from training.options.config import TrainConfig


def state(ema: float) -> TrainState:
    config = settled(TrainConfig(ema=ema), image_size=16, training_images=100)
    model = nn.Sequential(nn.Linear(100, 100))
    images, labels = np.zeros((100, 16, 16, 3), np.uint8), np.zeros(100, int)
    batches = Batches(TrainingSet(images=images, labels=labels, indices=np.arange(100)), config, torch.device("cpu"))
    objective = Objective.of(config, labels, 2, model, batches)
    return TrainState.start(model, config, objective, steps_an_epoch=10)


def test_weights_are_stored_once_unless_an_average_is_kept(tmp_path: Path) -> None:
    sizes = {}
    for ema in (0.0, 0.9):
        checkpoint.save(state(ema).state_dict(), tmp_path / f"{ema}.pt")
        sizes[ema] = (tmp_path / f"{ema}.pt").stat().st_size
    assert sizes[0.9] - sizes[0.0] > 0.9 * 100 * 101 * 4


def test_a_checkpoint_holds_both_what_learns_and_what_is_scored() -> None:
    one: Any = state(0.9)
    for _ in range(3):
        one.model(torch.ones(1, 100)).sum().backward()
        one.optimizer.step()
        one.schedule.step()
        one.average.update(one.model)
    saved = one.state_dict()
    assert torch.equal(saved["weights"]["0.weight"], one.model[0].weight)
    assert torch.equal(saved["model"]["0.weight"], one.average.model[0].weight)
    assert not torch.equal(saved["model"]["0.weight"], saved["weights"]["0.weight"])
    assert saved["averaged_steps"] == 3
    assert saved["schedule"]["last_epoch"] == 3
    assert {float(entry["step"]) for entry in saved["optimizer"]["state"].values()} == {3}
