"""The state of training: the model, its average, the optimizer and the learning rate schedule."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.amp.grad_scaler import GradScaler
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from serving.contract.card.model_card import Normalization
from training.data.dataset import Dataset
from training.distributed import ALONE, Group
from training.engine import optimizer, parallel
from training.engine.objective import Objective
from training.models import networks
from training.models.ema import ExponentialMovingAverage
from training.models.weights import Weights
from training.options.settled import SettledConfig
from training.signals import Interruption


@dataclass(frozen=True, kw_only=True)
class RunContext:
    """What stays the same throughout a run: options, data, device, processes, and the signals that may stop it."""

    config: SettledConfig
    dataset: Dataset
    normalization: Normalization
    weights: Weights | None
    """The pretrained weights to start from; None without any, and in a run that has a checkpoint."""
    device: torch.device
    group: Group
    interruption: Interruption
    revision: str | None
    """Revision of the source when the run started: a commit or a changed file may follow while it trains."""


@dataclass(frozen=True, kw_only=True)
class TrainState:
    """A model and all that changes with it in a step: the part of a checkpoint that training continues from."""

    whole: nn.Sequential
    """The complete network."""
    model: nn.Sequential
    """The part that learns: all of it, or with --freeze the head alone. It shares names and weights with `whole`."""
    parallel: nn.Module
    """The same model, as all processes train it together."""
    average: ExponentialMovingAverage
    optimizer: Optimizer
    scaler: GradScaler
    """Scales the loss so that small gradients are not zero in float16; does nothing in other types."""
    schedule: LambdaLR
    objective: Objective
    """Constant, like `config` and `group`: what a step minimizes."""
    config: SettledConfig
    group: Group

    @classmethod
    def start(
        cls,
        model: nn.Sequential,
        config: SettledConfig,
        objective: Objective,
        steps_an_epoch: int,
        group: Group = ALONE,
    ) -> "TrainState":
        """The state before the first step of a model that the processes of `group` train together."""
        learner = networks.learning_part(model, config)
        wrapped = parallel.wrap(learner, group)
        stepper = optimizer.make(learner, config)
        return cls(
            whole=model,
            model=learner,
            parallel=wrapped,
            average=ExponentialMovingAverage(learner, config.ema),
            optimizer=stepper,
            scaler=GradScaler(objective.class_weights.device.type, enabled=objective.dtype is torch.float16),
            schedule=optimizer.schedule(stepper, config, steps_an_epoch),
            objective=objective,
            config=config,
            group=group,
        )

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from what `state_dict` returned."""
        self.model.load_state_dict(state["weights"])
        self.average.load(state["model"], state["averaged_steps"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        if state["scaler"]:  # empty where the run began on a device that needs none
            self.scaler.load_state_dict(state["scaler"])

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain values: `model` are the weights that are scored and exported, `weights` those that learn.

        They are the same tensors, stored once, where no average is kept.
        """
        return {
            "model": self.whole.state_dict() | self.average.model.state_dict(),
            "weights": self.model.state_dict(),
            "averaged_steps": self.average.steps,
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "scaler": self.scaler.state_dict(),
        }
