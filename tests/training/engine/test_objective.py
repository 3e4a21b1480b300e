"""The loss by hand, with what torch computes as a witness."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from tests.support.configs import settled
from training.data.loader import Batches, TrainingSet
from training.engine.objective import Objective
from training.options.config import TrainConfig

LABELS = np.repeat([0, 1, 2], [6, 3, 1])
IMAGES = np.random.default_rng(0).integers(0, 256, (10, 8, 8, 3), dtype=np.uint8)


def loss(**given: Any) -> tuple[float, Tensor]:
    """The sum over all images, and the logits by which it was computed."""
    config = TrainConfig(model="mlp", augment="none", precision="float32", **given)
    config = settled(config, image_size=8, training_images=10)
    torch.manual_seed(0)
    model = nn.Sequential(Floats(), nn.Flatten(), nn.Linear(8 * 8 * 3, 3))
    batches = Batches(TrainingSet(images=IMAGES, labels=LABELS, indices=np.arange(10)), config, torch.device("cpu"))
    objective = Objective.of(config, LABELS, 3, model, batches)
    summed, _ = objective(model, (torch.from_numpy(IMAGES), torch.from_numpy(LABELS)), 0, 0, 0)
    return summed.item(), model(torch.from_numpy(IMAGES)).detach()


class Floats(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return images.float() / 255


@pytest.mark.parametrize("balance", ["none", "bias", "logits"])
def test_labels_are_smoothed_towards_how_often_each_class_is_seen(balance: str) -> None:
    summed, logits = loss(balance=balance, label_smoothing=0.1)
    shares = torch.tensor([0.6, 0.3, 0.1])
    targets = 0.9 * torch.eye(3)[torch.from_numpy(LABELS)] + 0.1 * shares
    adjusted = logits + shares.log() if balance == "logits" else logits
    assert summed == pytest.approx(-(targets * adjusted.log_softmax(1)).sum().item(), rel=1e-6)


@pytest.mark.parametrize(("balance", "weights"), [("sampler", None), ("loss", torch.tensor([10 / 18, 10 / 9, 10 / 3]))])
def test_classes_that_are_made_alike_share_what_labels_lose(balance: str, weights: Tensor | None) -> None:
    summed, logits = loss(balance=balance, label_smoothing=0.1)
    witness = cross_entropy(logits, torch.from_numpy(LABELS), weights, label_smoothing=0.1, reduction="sum")
    assert summed == pytest.approx(witness.item(), rel=1e-6)


def test_without_smoothing_the_loss_is_that_of_torch_bit_for_bit() -> None:
    summed, logits = loss(balance="none", label_smoothing=0.0)
    assert summed == cross_entropy(logits, torch.eye(3)[torch.from_numpy(LABELS)], reduction="sum").item()
