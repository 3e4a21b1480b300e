"""What the steps of an epoch add up to."""

import math

import numpy as np
import pytest
import torch

from tests.support.configs import settled
from training.engine.progress import RunProgress, StepResult
from training.metrics.classification import score
from training.options.config import TrainConfig


@pytest.mark.parametrize(("norms", "mean"), [((math.inf, math.nan, 2.0, 4.0), 3.0), ((math.inf,), 0.0)])
def test_the_mean_norm_is_of_the_steps_whose_gradients_are_finite(norms: tuple[float, ...], mean: float) -> None:
    """In float16 the first steps overflow until the scale of the loss is small enough."""
    progress = RunProgress()
    measured = [torch.tensor([1.0, 1.0, norm]) for norm in norms]
    progress.add_steps([StepResult(step=i, images=2, measured=values) for i, values in enumerate(measured)])
    scores = score(np.array([0, 1]), np.full((2, 2), 0.5, np.float32), ("a", "b"))
    line = progress.close_epoch(scores, scores, settled(TrainConfig(), image_size=8, training_images=16), 0.1)
    assert (line.gradient_norm_mean, line.gradient_norm_max) == (mean, max([0.0, *filter(math.isfinite, norms)]))
    assert progress.overflowed == 0, "of the next epoch"
