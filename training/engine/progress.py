"""How far a run has come: what a checkpoint holds beside the train state, so that the run continues exactly."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from training.distributed import ALONE, Group
from training.errors import NonFiniteLoss
from training.metrics.classification import TITLES, Scores
from training.options.settled import SettledConfig


@dataclass(frozen=True, kw_only=True)
class Epoch:
    """One line of a run's history; the training figures are means over the epoch's augmented batches."""

    epoch: int
    train_loss: float
    train_accuracy: float
    val_loss: float
    val_accuracy: float
    val_balanced_accuracy: float
    val_score: float | None
    """The score of --best-by, a log loss at the temperature fitted to the same images; None where it is undefined."""
    lr: float
    """Learning rate of the last layer; those of the others are a share of it, and 0 in frozen epochs."""
    gradient_norm_mean: float
    gradient_norm_max: float
    """Norm of all gradients of a step together, before any clipping; of steps whose gradients are finite."""
    loss_variance: float | None
    """Variance of the loss between successive steps: half their mean squared difference (von Neumann 1941), which a
    falling loss does not inflate; None for one step."""
    images_per_second: float
    seconds: float
    """Duration of training, without validation."""
    best: bool

    def line(self, config: SettledConfig) -> str:
        """For the console."""
        score = "-" if self.val_score is None else f"{self.val_score:.3f}"
        calibrated = "calibrated " if config.best_by == "log_loss" else ""
        return (
            f"epoch {self.epoch:{len(str(config.epochs))}}/{config.epochs}  "
            f"train loss {self.train_loss:.3f} accuracy {self.train_accuracy:6.1%}  "
            f"val loss {self.val_loss:.3f} accuracy {self.val_accuracy:6.1%} "
            f"{calibrated}{TITLES[config.best_by]} {score}  "
            f"{self.images_per_second:,.0f} images/s{'  best' if self.best else ''}"
        )


@dataclass(frozen=True, kw_only=True)
class StepResult:
    """What one step of the optimizer measured. The numbers are on the device, which may not have computed them yet."""

    step: int
    images: int
    """Number of images of all processes together."""
    measured: Tensor
    """Float32 `[3]`: sum of the losses and number of correct predictions of this process's images; norm of all
    gradients together, before any clipping."""


@dataclass(kw_only=True)
class RunProgress:
    """Epochs done, and the steps and sums of the one that is under way."""

    history: list[Epoch] = field(default_factory=list)
    best_rank: tuple[float, float] = (-math.inf, -math.inf)
    step: int = 0
    """Steps done of the epoch under way."""
    images: int = 0
    loss_sum: float = 0.0
    correct: int = 0
    norm_sum: float = 0.0
    overflowed: int = 0
    """Steps whose gradients were not finite, which float16 leaves out: they are in no norm."""
    norm_max: float = 0.0
    last_loss: float | None = None
    """Loss of the step before, in this epoch."""
    change_sum: float = 0.0
    """Sum of the squared differences between the losses of successive steps."""
    seconds: float = 0.0

    @property
    def epoch(self) -> int:
        """Number of the epoch under way, from 0."""
        return len(self.history)

    @property
    def best_epoch(self) -> int:
        """The last epoch that was better than all before it, from 1; 0 before the first."""
        return max((line.epoch for line in self.history if line.best), default=0)

    @property
    def loss(self) -> float:
        """Mean over the images of the epoch under way."""
        return self.loss_sum / self.images

    @property
    def accuracy(self) -> float:
        """Share of the images of the epoch under way."""
        return self.correct / self.images

    @property
    def images_per_second(self) -> float:
        """Rate of the epoch under way, waiting for batches included."""
        return self.images / max(self.seconds, 1e-9)

    def ended(self, config: SettledConfig) -> bool:
        """Whether all epochs to be trained are done, or none of the last --patience was better (early stopping)."""
        patient = config.patience is None or self.epoch - self.best_epoch < config.patience
        return self.epoch >= (config.best_epoch or config.epochs) or not patient

    def add_steps(self, results: Sequence[StepResult], group: Group = ALONE) -> None:
        """Add the next steps of the epoch, but for the time that they took.

        Waits for the device. Every process of a group must call it. Raises NonFiniteLoss naming the first such step.
        """
        if not results:
            return
        measured = torch.stack([result.measured for result in results]).tolist()
        sums = group.sum(*(value for loss_sum, correct, _ in measured for value in (loss_sum, correct)))
        for result, loss_sum, correct, (*_, norm) in zip(results, sums[::2], sums[1::2], measured, strict=True):
            self._add(result, loss_sum, correct, norm)

    def _add(self, result: StepResult, loss_sum: float, correct: float, norm: float) -> None:
        loss = loss_sum / result.images
        if not math.isfinite(loss):
            raise NonFiniteLoss(f"the loss is {loss} in epoch {self.epoch + 1}, step {result.step + 1}", result.step)
        self.change_sum += 0.0 if self.last_loss is None else (loss - self.last_loss) ** 2
        self.last_loss = loss
        self.step += 1
        self.images += result.images
        self.loss_sum += loss_sum
        self.correct += int(correct)
        if math.isfinite(norm):
            self.norm_sum += norm
            self.norm_max = max(self.norm_max, norm)
        else:
            self.overflowed += 1

    def __str__(self) -> str:
        """Loss, accuracy and speed of the epoch under way, for the progress bar."""
        return f"loss {self.loss:.3f}, accuracy {self.accuracy:.1%}, {self.images_per_second:,.0f} images/s"

    def close_epoch(self, validation: Scores, ranked: Scores, config: SettledConfig, lr: float) -> Epoch:
        """End the epoch under way, and return its line of the history. The scores are those of `validate`."""
        # Of a fixed number of epochs each is better than those before.
        rank = ranked.rank(config.best_by) if config.best_epoch is None else (self.epoch, 0.0)
        line = Epoch(
            epoch=self.epoch + 1,
            train_loss=self.loss,
            train_accuracy=self.accuracy,
            val_loss=validation.log_loss,
            val_accuracy=validation.accuracy,
            val_balanced_accuracy=validation.balanced_accuracy,
            val_score=getattr(ranked, config.best_by),
            lr=lr,
            gradient_norm_mean=self.norm_sum / max(self.step - self.overflowed, 1),
            gradient_norm_max=self.norm_max,
            loss_variance=self.change_sum / 2 / (self.step - 1) if self.step > 1 else None,
            images_per_second=self.images_per_second,
            seconds=self.seconds,
            best=rank > self.best_rank,
        )
        self.history.append(line)
        self.best_rank = max(self.best_rank, rank)
        self.step = self.images = self.correct = self.overflowed = 0
        self.loss_sum = self.norm_sum = self.norm_max = self.change_sum = self.seconds = 0.0
        self.last_loss = None
        return line

    def state_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> "RunProgress":
        """The progress that `state_dict` returned."""
        lines = [Epoch(**line) for line in state["history"]]
        return cls(**state | {"history": lines, "best_rank": tuple(state["best_rank"])})
