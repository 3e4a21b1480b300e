import cv2
import numpy as np
import pytest

from training.robustness.changes import (
    DRIFTS,
    MARGIN,
    PROBES,
    Change,
    border_only,
    brightness,
    centre_only,
    coarseness,
    contrast,
    noise,
    shuffled,
    turn,
    warmth,
    without_colour,
)

_BLURRED = cv2.GaussianBlur(np.random.default_rng(0).random((120, 180, 3)), (0, 0), 12)
SMOOTH = (20 + 215 * (_BLURRED - _BLURRED.min()) / np.ptp(_BLURRED)).astype(np.uint8)
"""Without the texture that any blur or turn would change in full."""


def rng() -> np.random.Generator:
    return np.random.default_rng(7)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("change", [*DRIFTS, *PROBES], ids=lambda change: change.name)
def test_a_change_keeps_the_form_and_the_original_and_is_drawn_by_its_generator(change: Change, channels: int) -> None:
    image = np.ascontiguousarray(SMOOTH[:, :, :channels])
    before = image.copy()
    for strength in change.strengths:
        made = change.apply(image, strength, rng())
        assert (made.shape, made.dtype) == (image.shape, np.uint8)
        assert np.array_equal(made, change.apply(image, strength, rng()))
    assert np.array_equal(image, before)


@pytest.mark.parametrize("change", DRIFTS, ids=lambda change: change.name)
def test_stronger_changes_change_more(change: Change) -> None:
    distances = [
        np.abs(change.apply(SMOOTH, strength, rng()).astype(int) - SMOOTH).mean() for strength in change.strengths
    ]
    assert distances == sorted(distances)
    assert distances[0] < distances[-1] / 2
    assert distances[-1] > 1


def test_values_worked_by_hand() -> None:
    image = np.array([[[100, 50, 200]], [[0, 0, 0]]], np.uint8)
    assert brightness(image, 1.5, rng()).tolist() == [[[150, 75, 255]], [[0, 0, 0]]]
    assert warmth(image, 0.1, rng()).tolist() == [[[110, 50, 180]], [[0, 0, 0]]]
    gray = np.array([[[10], [30]]], np.uint8)
    assert contrast(gray, 0.5, rng()).tolist() == [[[15], [25]]]
    assert without_colour(np.full((2, 2, 3), (255, 0, 0), np.uint8), 1, rng()).tolist() == [[[76] * 3] * 2] * 2


def test_noise_has_its_deviation() -> None:
    ground = np.full((200, 200, 3), 128, np.uint8)
    assert (noise(ground, 8, rng()).astype(float) - 128).std() == pytest.approx(8, rel=0.02)


def test_a_turn_goes_to_both_sides_around_the_centre() -> None:
    image = np.zeros((41, 41, 1), np.uint8)
    image[20, 30] = 255
    found = {tuple(np.argwhere(turn(image, 90, np.random.default_rng(seed)))[0][:2].tolist()) for seed in range(8)}
    assert found == {(10, 20), (30, 20)}


def test_fewer_pixels_are_averages() -> None:
    squares = np.kron([[0, 255], [255, 0]] * 8, np.ones((2, 2))).astype(np.uint8)[:, :, None]
    assert set(np.unique(coarseness(squares, 4, rng()))) <= {127, 128}


def test_border_and_centre_part_the_image() -> None:
    image = np.full((100, 200, 3), 7, np.uint8)
    border, centre = border_only(image, 1, rng()) == 7, centre_only(image, 1, rng()) == 7
    assert (border ^ centre).all()
    assert centre.mean() == pytest.approx((1 - 2 * MARGIN) ** 2, abs=0.001)
    assert centre[50, 100].all()


def test_shuffled_patches_are_the_same_patches() -> None:
    image = np.random.default_rng(0).integers(0, 256, (42, 43, 3), np.uint8)
    moved = shuffled(image, 1, rng())
    assert np.array_equal(np.sort(moved[:40, :40], axis=None), np.sort(image[:40, :40], axis=None))
    assert np.array_equal(moved[40:], image[40:])
    assert not np.array_equal(moved, image)
