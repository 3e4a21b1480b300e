from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.support.configs import settled
from tests.support.datasets import of
from training.data.dataset import Dataset
from training.metrics.classification import Scores
from training.metrics.evaluation import validate
from training.options.config import TrainConfig


class Scaled(nn.Module):
    """The mean red, blue and green as logits, which are as certain as `scale` makes them."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(scale))

    def forward(self, images: Tensor) -> Tensor:
        return images.float().mean((1, 2))[:, [0, 2, 1]] / 255 * self.scale


def scores(dataset: Dataset, scale: float, **options: Any) -> tuple[Scores, Scores]:
    config = settled(TrainConfig(**options), image_size=16, training_images=54)
    return validate(Scaled(scale), dataset, config)


def test_epochs_are_ranked_by_the_log_loss_that_is_left_after_calibration(photos: Path) -> None:
    dataset = of(photos, image_size=16, val_fraction=0.4)
    labels = dataset.labels.copy()
    labels[dataset.splits["val"][::6]] = 0  # so that certain answers are wrong
    dataset = replace(dataset, image_set=replace(dataset.image_set, labels=labels))
    plain, ranked = scores(dataset, 5.0, best_by="log_loss")
    sure, sure_ranked = scores(dataset, 50.0, best_by="log_loss")
    assert sure.log_loss > 2 * plain.log_loss
    assert sure_ranked.log_loss == pytest.approx(ranked.log_loss, abs=1e-3)
    assert sure.accuracy == sure_ranked.accuracy == plain.accuracy
    assert scores(dataset, 50.0, best_by="roc_auc") == (sure, sure)


def test_fewer_images_than_a_temperature_takes_rank_as_they_are(photos: Path) -> None:
    plain, ranked = scores(of(photos, image_size=16), 50.0, best_by="log_loss")
    assert plain == ranked
