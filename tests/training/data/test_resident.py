from typing import Any

import numpy as np
import pytest
import torch

from tests.support.configs import settled
from training.data import resident as resident_images
from training.data.loader import Batches, TrainingSet
from training.data.resident import ResidentImages, fits
from training.options.config import TrainConfig

IMAGES = np.random.default_rng(0).integers(0, 256, (50, 16, 16, 3), dtype=np.uint8)
LABELS = np.arange(50) % 7
TRAIN = np.arange(1, 50, 2)
CPU = torch.device("cpu")


def test_batches_are_those_that_are_copied_from_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resident_images, "CHUNK", 7)  # of 25 images
    config = settled(TrainConfig(batch_size=8, augment="none"), image_size=16, training_images=len(TRAIN))
    batches = Batches(TrainingSet(images=IMAGES, labels=LABELS, indices=TRAIN), config, CPU)
    copied = [batch for step in batches.epoch(2) for batch in step]
    batches._resident = ResidentImages(IMAGES, LABELS, TRAIN, CPU)
    resident = [batch for step in batches.epoch(2) for batch in step]
    assert len(copied) == len(resident) == 3
    for one, other in zip(copied, resident, strict=True):
        assert all(map(torch.equal, one, other))


@pytest.mark.parametrize(
    ("device", "options", "free", "expected"),
    [
        ("cuda", {}, 1e6, True),
        ("cuda", {}, 1e4, False),
        ("cuda", {"augment_on": "workers"}, 1e6, False),
        ("cuda", {"augment_on": "workers", "augment": "none"}, 1e6, True),
        ("cpu", {}, 1e6, False),
    ],
)
def test_they_stay_where_there_is_room_and_no_worker_has_to_see_them(
    device: str, options: dict[str, Any], free: float, expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (int(free), int(free)))
    config = settled(TrainConfig(**options), image_size=16, training_images=len(TRAIN))
    assert fits(IMAGES, TRAIN, config, torch.device(device)) is expected
