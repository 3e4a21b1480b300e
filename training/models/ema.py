"""The exponential moving average of the weights."""

from typing import Any, cast

from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn


class ExponentialMovingAverage:
    """The weights that are scored, kept and exported: with a decay their moving average, else the model's own.

    After step t the decay is at most (1 + t) / (10 + t), as in TensorFlow's ExponentialMovingAverage: a short run would
    otherwise keep a share of its random start. Statistics of batch normalisation are averaged likewise.
    """

    def __init__(self, model: nn.Sequential, decay: float) -> None:
        self.decay = decay
        self._averaged = AveragedModel(model, multi_avg_fn=self._lerp, use_buffers=True) if decay else None
        self.model = cast(nn.Sequential, self._averaged.module) if self._averaged else model

    @property
    def steps(self) -> int:
        """Number of steps in the average; 0 without a decay."""
        return int(self._averaged.n_averaged) if self._averaged is not None else 0

    def load(self, state: dict[str, Any], steps: int) -> None:
        """Continue from the weights `state`, an average of `steps` steps."""
        if self._averaged is not None:
            names = self._averaged.module.state_dict()
            self._averaged.module.load_state_dict({name: state[name] for name in names})
            self._averaged.n_averaged.fill_(steps)

    def update(self, model: nn.Module) -> None:
        """Include the weights after one more step."""
        if self._averaged is not None:
            self._averaged.update_parameters(model)

    def _lerp(self, averaged: Any, current: Any, steps: Tensor | int) -> None:
        """`steps` may be on a GPU, which would have to be waited for; `self.steps` is not."""
        decay = min(self.decay, (1 + self.steps) / (10 + self.steps))
        get_ema_multi_avg_fn(decay)(averaged, current, steps)  # type: ignore[no-untyped-call]
