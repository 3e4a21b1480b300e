from typing import Any

import numpy as np
import pytest
import torch

from training.engine.mixup import Mixing

RNG = torch.Generator().manual_seed(0)
IMAGES = torch.randint(0, 256, (8, 20, 24, 3), dtype=torch.uint8, generator=RNG)
LABELS = torch.tensor([0, 1, 2, 3, 0, 1, 2, 3])


def mixing(mixup: float = 0.0, cutmix: float = 0.0, seed: int = 0) -> Mixing:
    return Mixing(classes=5, seed=seed, mixup=mixup, cutmix=cutmix)


def shares(targets: torch.Tensor) -> torch.Tensor:
    """Each image's own share, which is the whole batch's."""
    return targets[torch.arange(len(LABELS)), LABELS]


def test_without_either_images_are_left_alone_and_targets_are_one_hot() -> None:
    images, targets = mixing()(IMAGES, LABELS, 0, 0, 0)
    assert images is IMAGES
    assert torch.equal(targets.argmax(1), LABELS)
    assert torch.equal(targets.sort(1).values, torch.tensor([0.0, 0, 0, 0, 1]).repeat(8, 1))


@pytest.mark.parametrize("options", [{"mixup": 0.4}, {"cutmix": 1.0}, {"mixup": 0.2, "cutmix": 1.0}])
def test_targets_sum_to_one_and_everything_depends_on_the_key_alone(options: dict[str, Any]) -> None:
    seen = set()
    for key in [(epoch, step, 0) for epoch in range(4) for step in range(25)]:
        images, targets = mixing(**options)(IMAGES, LABELS, *key)
        again = mixing(**options)(IMAGES, LABELS, *key)
        assert torch.equal(images, again[0])
        assert torch.equal(targets, again[1])
        assert (targets.sum(1) - 1).abs().max() < 1e-6
        assert images.dtype == torch.uint8
        assert images.shape == IMAGES.shape
        seen.add(float(shares(targets)[0]))
    assert len(seen) > 60
    assert not torch.equal(
        mixing(**options, seed=1)(IMAGES, LABELS, 0, 0, 0)[1], mixing(**options)(IMAGES, LABELS, 0, 0, 0)[1]
    )


def test_mixup_mixes_images_and_labels_by_the_same_share() -> None:
    for step in range(20):
        images, targets = mixing(mixup=0.5)(IMAGES, LABELS, 0, step, 0)
        share = float(shares(targets)[0])
        expected = share * IMAGES.double() + (1 - share) * IMAGES.roll(1, 0).double()
        assert (images.double() - expected).abs().max() <= 0.5 + 1e-3, "rounded to bytes and nothing else"
        assert torch.allclose(targets[torch.arange(8), LABELS.roll(1)], torch.tensor(1 - share))


def test_cutmix_labels_are_the_areas() -> None:
    areas = []
    for step in range(50):
        images, targets = mixing(cutmix=1.0)(IMAGES, LABELS, 0, step, 0)
        foreign = (images != IMAGES).any(-1)
        neighbour = (images == IMAGES.roll(1, 0)).all(-1)
        assert torch.equal(foreign & neighbour, foreign), "every pixel is the image's own or its neighbour's"
        share = 1 - foreign.float().mean((1, 2))
        assert (share - shares(targets)).abs().max() < 0.01, "but for pixels that happen to be equal"
        [box] = {
            tuple(map(int, (rows.min(), rows.max(), columns.min(), columns.max())))
            for rows, columns in [foreign.any(0).nonzero(as_tuple=True)]
            if len(rows)
        } or [None]
        if box:
            top, bottom, left, right = box
            assert foreign.any(0)[top : bottom + 1, left : right + 1].all(), "it is one box"
        areas.append(float(share.mean()))
    assert np.std(areas) > 0.15


def test_the_share_has_its_beta_distribution_and_both_methods_are_equally_frequent() -> None:
    drawn = [mixing(mixup=2.0)(IMAGES, LABELS, 0, step, 0)[1] for step in range(2000)]
    values = np.array([float(shares(targets)[0]) for targets in drawn])
    assert values.mean() == pytest.approx(0.5, abs=5 * np.sqrt(0.05 / 2000))
    assert values.var() == pytest.approx(0.05, rel=0.15), "of Beta(2, 2)"
    both = [mixing(mixup=2.0, cutmix=2.0)(IMAGES, LABELS, 1, step, 0)[0] for step in range(400)]
    cut = [bool(((images == IMAGES) | (images == IMAGES.roll(1, 0))).all()) for images in both]
    assert np.mean(cut) == pytest.approx(0.5, abs=0.1)
