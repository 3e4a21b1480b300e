"""What an epoch moves, and what it leaves as it is."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support.checkpoints import last, same
from tests.support.trainer import STEPS_AN_EPOCH, After, config
from training.__main__ import options
from training.errors import Interrupted
from training.options.config import TrainConfig
from training.signals import Interruption
from training.train import train

HALF_FROZEN: dict[str, Any] = {
    **{"workers": 0, "freeze_epochs": 1, "body_lr": 0.1, "lr": 0.01},
    **{"schedule": "constant", "warmup_epochs": 0.0},
}
"""The last layer alone learns in the first of two epochs."""


def stopped(begun: TrainConfig, looks: int) -> Path:
    with pytest.raises(Interrupted):
        train(begun, After(looks))
    assert begun.name is not None
    return begun.out / begun.name


class Before(Interruption):
    """A signal before the first step, where the loop has not yet begun to defer it."""

    @contextmanager
    def deferred(self) -> Iterator[None]:
        if self.number is None:
            self.number = signal.SIGTERM
            raise Interrupted(self.number)
        with super().deferred():
            yield


def test_a_signal_before_the_first_step_leaves_a_checkpoint(photos: Path, tmp_path: Path) -> None:
    begun = config(photos, tmp_path, name="x", model="mlp", hidden=(8,), workers=0, epochs=1)
    with pytest.raises(Interrupted):
        train(begun, Before())
    assert (last(tmp_path / "x")["progress"]["step"], last(tmp_path / "x")["progress"]["history"]) == (0, [])
    assert train(options("train", ["--resume", str(tmp_path / "x")])) == tmp_path / "x"


def body(run: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for name, tensor in last(run)["weights"].items() if name.startswith("1.")}


@pytest.mark.slow
def test_frozen_layers_stand_still_with_their_statistics(photos: Path, tmp_path: Path) -> None:
    begun = config(photos, tmp_path, name="x", **HALF_FROZEN)
    run = stopped(begun, 0)
    first = last(run)["weights"]
    statistics = {name: tensor for name, tensor in first.items() if "running" in name}
    assert statistics
    for name, tensor in statistics.items():
        assert torch.equal(tensor, torch.full_like(tensor, float("var" in name))), name
    before = body(run)
    stopped(options("train", ["--resume", str(run)]), STEPS_AN_EPOCH)
    assert len(last(run)["progress"]["history"]) == 1
    assert same(body(run), before)
    assert not torch.equal(last(run)["weights"]["2.1.weight"], first["2.1.weight"])
    train(options("train", ["--resume", str(run)]))
    assert [line["lr"] for line in last(run)["progress"]["history"]] == [0.01, 0.01], "of the last layer"
    moved = {name for name, tensor in body(run).items() if not torch.equal(tensor, before[name])}
    assert moved == before.keys(), "weights and statistics"
    whole = train(config(photos, tmp_path, name="whole", **HALF_FROZEN))
    assert same(last(run), last(whole)), "a run that was stopped in a frozen epoch ends as one that was not"
