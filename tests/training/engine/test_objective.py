"""The loss by hand, with what torch computes as a witness."""

from collections.abc import Sequence
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


def loss(answers: Sequence[float] = (), **given: Any) -> tuple[float, Tensor]:
    """The sum over all images, and the logits by which it was computed: `answers`, in bits, where they are given."""
    config = TrainConfig(model="mlp", augment="none", precision="float32", **given)
    config = settled(config, image_size=8, training_images=10)
    torch.manual_seed(0)
    head = nn.Linear(8 * 8 * 3, 3)
    if answers:
        head.weight.data.zero_()
        head.bias.data = torch.tensor(answers) * np.log(2)
    model = nn.Sequential(Floats(), nn.Flatten(), head)
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


def test_classes_that_are_drawn_alike_share_what_labels_lose() -> None:
    summed, logits = loss(balance="sampler", label_smoothing=0.1)
    witness = cross_entropy(logits, torch.from_numpy(LABELS), label_smoothing=0.1, reduction="sum")
    assert summed == pytest.approx(witness.item(), rel=1e-6)


def test_balance_loss_weighs_images_whose_labels_are_smoothed_like_all_others() -> None:
    summed, logits = loss(balance="loss", label_smoothing=0.1)
    weights = torch.tensor([10 / 18, 10 / 9, 10 / 3])[torch.from_numpy(LABELS)]
    each = cross_entropy(logits, torch.from_numpy(LABELS), label_smoothing=0.1, reduction="none")
    assert summed == pytest.approx((weights * each).sum().item(), rel=1e-6)


@pytest.mark.parametrize("mixup", [0.0, 0.4])
def test_each_class_counts_a_third_of_the_loss_by_hand(mixup: float) -> None:
    # Each image has probabilities of 1/2, 1/4, 1/4, so its loss is 1, 2 or 2 bits; smoothing takes a tenth of that and
    # adds a tenth of their mean. A mixed image counts as what it has of each of the two.
    summed, _ = loss(answers=[2.0, 1.0, 1.0], balance="loss", label_smoothing=0.1, mixup=mixup)
    bits = [0.9 * own + 0.1 * 5 / 3 for own in (1, 2, 2)]
    assert summed == pytest.approx(10 / 3 * sum(bits) * np.log(2), rel=1e-6)


def test_without_smoothing_the_loss_is_that_of_torch_bit_for_bit() -> None:
    summed, logits = loss(balance="none", label_smoothing=0.0)
    assert summed == cross_entropy(logits, torch.eye(3)[torch.from_numpy(LABELS)], reduction="sum").item()
