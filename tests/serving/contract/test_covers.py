import numpy as np
import pytest

from serving.contract.covers import GRID, covered, without


@pytest.mark.parametrize(("height", "width", "channels"), [(64, 64, 3), (28, 28, 1), (8, 224, 3), (5, 7, 3)])
def test_every_region_is_covered_once_with_the_images_mean(height: int, width: int, channels: int) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, channels), np.uint8)
    images = covered(pixels)
    assert images.shape == (GRID * GRID, height, width, channels)
    mean = np.rint(pixels.mean((0, 1)))
    changed = (images != pixels).any(-1)
    for (row, column), image, change in zip(np.ndindex(GRID, GRID), images, changed, strict=True):
        own = np.s_[row * height // GRID : -(-(row + 1) * height // GRID), column * width // GRID :]
        assert (image[own][:, : -(-width // GRID)] == mean).all(), "the region itself is gone"
        assert change.any(1).sum() <= 2 * height / GRID + 2
        assert change.any(0).sum() <= 2 * width / GRID + 2
    assert (images != pixels).any(-1).any(0).mean() > 0.95, "no pixel is left out"


def test_hidden_regions_are_their_share_of_the_image_and_no_more() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (64, 48, 3), np.uint8)
    regions = np.zeros((GRID, GRID), bool)
    regions[1, 2] = regions[7, 7] = True
    shown = without(pixels, regions)
    expected = pixels.copy()
    hidden = np.zeros((64, 48), bool)
    hidden[8:16, 12:18] = hidden[56:, 42:] = True
    expected[hidden] = np.rint(pixels[~hidden].mean(0))
    assert np.array_equal(shown, expected)
    assert not np.array_equal(shown, pixels)


def test_an_image_smaller_than_the_grid_loses_what_its_regions_hold() -> None:
    pixels = np.arange(35, dtype=np.uint8).reshape(5, 7, 1)
    lower = np.zeros((GRID, GRID), bool)
    lower[4:] = True
    assert np.array_equal(without(pixels, lower)[:3], pixels[:3])
    assert (without(pixels, lower)[3:] == 10).all(), "the mean of what is shown"
    assert np.array_equal(without(pixels, np.zeros((GRID, GRID), bool)), pixels)
