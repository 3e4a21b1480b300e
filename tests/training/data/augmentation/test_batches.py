"""Batches are changed as the Albumentations pipeline of the same options changes images, on CPUs and on tensors."""

from dataclasses import replace
from typing import Any

import albumentations as A
import cv2
import numpy as np
import pytest
import torch
from scipy.stats import ks_2samp
from sklearn.datasets import load_sample_images

from tests.support.configs import settled
from training.data.augmentation import opencv, pipeline, tensors
from training.data.augmentation.draws import STRENGTHS, BatchPolicy, Draws
from training.data.augmentation.tensors import BatchAugmentation
from training.options.choices import Policy, Symmetry
from training.options.config import TrainConfig

COUNT = 600
SIDE = 32
PHOTO = cv2.resize(load_sample_images().images[0], (SIDE, SIDE), interpolation=cv2.INTER_AREA)


def policy(**options: Any) -> BatchPolicy:
    config = settled(TrainConfig(**options), image_size=SIDE, training_images=COUNT)
    made = BatchPolicy.of(config, COUNT)
    assert made is not None
    return made


def copies(image: np.ndarray = PHOTO, count: int = COUNT) -> np.ndarray:
    return np.repeat(image[None], count, 0)


def by_opencv(draws: Draws) -> np.ndarray:
    images = copies(count=len(draws.affine))
    opencv.change(images, draws)
    return images


def by_albumentations(draws: Draws, row: int) -> np.ndarray:
    """The same numbers, by the library's own transforms; the order of the changes is the pipeline's."""
    scale = np.linalg.norm(draws.matrix[row, :, :2], axis=0)
    angle = np.rad2deg(np.arcsin(draws.matrix[row, 0, 1] / scale[1]))
    centre = np.full(2, (SIDE - 1) / 2)
    shift = np.rint(draws.matrix[row, :, 2] - centre + draws.matrix[row, :, :2] @ centre).astype(int)
    affine = A.Affine(
        scale={"x": (scale[0], scale[0]), "y": (scale[1], scale[1])},
        translate_px={"x": (int(shift[0]),) * 2, "y": (int(shift[1]),) * 2},
        rotate=(angle, angle),
        border_mode=cv2.BORDER_REFLECT_101,
        p=1,
    )
    contrast, brightness = draws.contrast[row] - 1, draws.brightness[row] / 255
    light = A.RandomBrightnessContrast((brightness, brightness), (contrast, contrast), p=1)
    chosen = [(affine, draws.affine[row]), (light, draws.lit[row])]
    changed: np.ndarray = A.Compose([transform for transform, drawn in chosen if drawn])(image=PHOTO)["image"]
    return changed


def test_what_light_draws_is_computed_as_albumentations_computes_it() -> None:
    draws = policy(augment="light").draw(0, 0).rows(list(range(60)))
    assert {(bool(a), bool(b)) for a, b in zip(draws.affine, draws.lit, strict=True)} == {
        (a, b) for a in (False, True) for b in (False, True)
    }
    for row, changed in enumerate(by_opencv(draws)):
        expected = by_albumentations(draws, row).astype(int)
        assert np.abs(changed - expected).max() <= 1, "angle and factors pass through a matrix and back"
        assert (changed == expected).mean() > 0.99


@pytest.mark.parametrize("symmetry", ["none", "mirror", "square"])
@pytest.mark.parametrize("augment", ["none", "light", "strong"])
@pytest.mark.parametrize("channels", [1, 3])
def test_a_device_computes_what_opencv_does(augment: Policy, symmetry: Symmetry, channels: Any) -> None:
    if augment == symmetry == "none":
        config = settled(TrainConfig(augment=augment), image_size=SIDE, training_images=COUNT)
        assert BatchPolicy.of(config, COUNT) is None
        return
    draws = policy(augment=augment, symmetry=symmetry, channels=channels).draw(1, 2)
    images = copies(PHOTO[..., :channels])
    on_device = tensors.changed(torch.from_numpy(images.copy()), draws).numpy()
    opencv.change(images, draws)
    difference = np.abs(images.astype(int) - on_device)
    assert difference[~draws.colored].max(initial=0) <= 2, "rounded after every change, or once"
    assert np.percentile(difference, 99) <= 2
    assert difference.max() <= 24, "OpenCV stores a hue in two degrees"
    assert len(np.unique(images, axis=0)) > 1


@pytest.mark.parametrize("augment", ["light", "strong"])
def test_their_distribution_is_that_of_the_albumentations_pipeline(augment: Policy) -> None:
    """Mean, contrast, place and colour of 600 images by either; chance alone is below p = 0.001 in one of 1,000."""
    transform = pipeline.policy(TrainConfig(augment=augment, augment_on="workers"))
    assert transform is not None
    expected = np.array([pipeline.apply(transform, PHOTO, 0, 0, place) for place in range(COUNT)])
    changed = by_opencv(policy(augment=augment).draw(0, 0))
    same = (changed == PHOTO).all((1, 2, 3)).mean(), (expected == PHOTO).all((1, 2, 3)).mean()
    assert same[0] == pytest.approx(same[1], abs=0.08)
    for measure in (
        lambda images: images.mean((1, 2, 3)),
        lambda images: images.std((1, 2, 3)),
        lambda images: images[:, : SIDE // 2].mean((1, 2, 3)) - images[:, SIDE // 2 :].mean((1, 2, 3)),
        lambda images: images[:, :, : SIDE // 2].mean((1, 2, 3)) - images[:, :, SIDE // 2 :].mean((1, 2, 3)),
        lambda images: images[..., 0].mean((1, 2)) - images[..., 2].mean((1, 2)),
    ):
        assert ks_2samp(measure(changed.astype(float)), measure(expected.astype(float))).pvalue > 1e-3
    np.testing.assert_allclose(changed.mean(0), expected.mean(0), atol=8)


@pytest.mark.parametrize("augment", ["light", "strong"])
def test_every_number_fills_its_range_evenly(augment: Policy) -> None:
    draws, strength = policy(augment=augment).draw(3, 4), STRENGTHS[augment]
    rng = np.random.default_rng(0)

    def evenly(numbers: np.ndarray, low: float, high: float) -> None:
        assert low <= numbers.min() < numbers.max() <= high
        assert ks_2samp(numbers, rng.uniform(low, high, 20_000)).pvalue > 1e-3

    scale = np.linalg.norm(draws.matrix[:, :, :2], axis=1)
    for axis in (0, 1):
        evenly(scale[:, axis], 1 - strength.scale, 1 + strength.scale)
    evenly(np.rad2deg(np.arcsin(draws.matrix[:, 0, 1] / scale[:, 1])), -strength.degrees, strength.degrees)
    evenly(draws.contrast[draws.lit], 1 - strength.brightness_by, 1 + strength.brightness_by)
    evenly(draws.brightness[draws.lit], -255 * strength.brightness_by, 255 * strength.brightness_by)
    evenly(draws.hue, -strength.hue, strength.hue)
    for drawn, probability in (
        (draws.affine, strength.affine),
        (draws.lit, strength.brightness),
        (draws.cut, strength.cut_out),
        (draws.colored, strength.color),
    ):
        assert drawn.mean() == pytest.approx(probability, abs=4 * (0.25 / COUNT) ** 0.5)
    sides = draws.box[:, 1] - draws.box[:, 0]
    assert int(0.1 * SIDE) <= sides.min() < sides.max() <= int(0.25 * SIDE)


@pytest.mark.gpu
def test_a_gpu_computes_what_the_same_operations_compute_on_the_cpu() -> None:
    images, draws = torch.from_numpy(copies()), policy(augment="strong", symmetry="square").draw(1, 2)
    difference = tensors.changed(images.cuda(), draws).cpu().int() - tensors.changed(images, draws).int()
    assert difference.abs().max() <= 1, "a value on the edge of two"
    assert (difference == 0).float().mean() > 0.999


def test_a_part_of_a_batch_gets_its_own_rows() -> None:
    made = policy(augment="strong", symmetry="square")
    images = torch.from_numpy(copies())
    whole = BatchAugmentation(policy=made, rows=list(range(COUNT)), accumulate=2)(images, 0, 1, 1)
    rows = [-1, 0, 1, 2]
    part = BatchAugmentation(policy=made, rows=rows, accumulate=2)(images[rows], 0, 1, 1)
    assert torch.equal(part, whole[rows])
    assert torch.equal(tensors.changed(images, made.draw(0, 3)), whole), "the third batch: two a step"
    other = replace(made, seed=1)
    assert not torch.equal(tensors.changed(images, other.draw(0, 3)), whole)
    assert torch.equal(BatchAugmentation(policy=None, rows=rows, accumulate=1)(images, 0, 0, 0), images)
