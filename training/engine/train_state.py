"""What training changes."""

from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from training.distributed import ALONE, Group
from training.engine import optimizer
from training.engine.ema import Average
from training.settled import SettledConfig


@dataclass(frozen=True, kw_only=True)
class Learner:
    """A model with all that changes along with it: everything that a checkpoint must hold to go on from it."""

    model: nn.Sequential
    parallel: nn.Module
    """The same model, as all processes train it together."""
    average: Average
    optimizer: Optimizer
    schedule: LambdaLR

    @classmethod
    def start(cls, model: nn.Sequential, config: SettledConfig, steps_an_epoch: int, group: Group = ALONE) -> "Learner":
        """A model about to be trained by a configuration."""
        parallel = group.parallel(model)
        stepper = optimizer.make(model, config)
        return cls(
            model=model,
            parallel=parallel,
            average=Average(model, config.ema),
            optimizer=stepper,
            schedule=optimizer.schedule(stepper, config, steps_an_epoch),
        )

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what `state_dict` gave."""
        self.model.load_state_dict(state["weights"])
        self.average.load(state["model"], state["averaged_steps"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain values: `model` are the weights that are scored and exported, `weights` those that learn.

        They are the same tensors, stored once, where no average is kept.
        """
        return {
            "model": self.average.model.state_dict(),
            "weights": self.model.state_dict(),
            "averaged_steps": self.average.steps,
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
        }
