from dataclasses import replace

import numpy as np
import pytest

from serving.contract.covers import GRID
from serving.contract.decode import Fit, Preprocessing, Window
from serving.inference.heatmap import AGAINST, FOR, HEATMAP_SIDE, STRONGEST, WHOLE, heatmap, overlay
from serving.inference.occlusion import LONGEST_SIDE, Explanation


def explanation(drops: np.ndarray, original: np.ndarray, window: Window = WHOLE) -> Explanation:
    return Explanation(
        label="a",
        confidence=0.9,
        drops=drops,
        original=original,
        fitted=np.zeros((8, 8, original.shape[2]), np.uint8),
        window=window,
        model_version="1",
    )


def one_region(row: int, column: int, drop: float) -> np.ndarray:
    drops = np.zeros((GRID, GRID), np.float32)
    drops[row, column] = drop
    return drops


def test_a_region_is_coloured_by_its_sign_where_it_is() -> None:
    for drop, colour in ((0.4, FOR), (-0.4, AGAINST)):
        colours = heatmap(one_region(1, 6, drop))
        assert colours.shape == (HEATMAP_SIDE, HEATMAP_SIDE, 4)
        row, column = divmod(int(colours[..., 3].argmax()), HEATMAP_SIDE)
        assert (row * GRID // HEATMAP_SIDE, column * GRID // HEATMAP_SIDE) == (1, 6)
        assert tuple(colours[row, column, :3]) == colour
        assert colours[..., 3].max() <= round(STRONGEST * 255)
        assert (colours[HEATMAP_SIDE // 2 :, :, 3] == 0).all()


@pytest.mark.parametrize("fit", ["stretch", "pad", "crop"])
@pytest.mark.parametrize("shape", [(100, 400), (400, 100), (64, 64)])
def test_a_region_lies_on_the_part_of_the_original_that_it_covers(fit: Fit, shape: tuple[int, int]) -> None:
    """A white square in the original; the region whose pixels it makes white in the input is drawn where it is."""
    original = np.zeros((*shape, 3), np.uint8)
    rows, columns = (slice(int(0.45 * side), int(0.58 * side)) for side in shape)
    original[rows, columns] = 255
    preprocessing = Preprocessing(height=64, width=64, channels=3, interpolation="area", fit=fit)
    fitted = preprocessing.fitted(original)[..., 0].astype(np.float32)
    drops = (fitted == 255).reshape(GRID, 8, GRID, 8).mean((1, 3)).astype(np.float32)
    assert drops.any()
    drawn = overlay(explanation(drops, original, preprocessing.window(*shape)))
    changed = (drawn != original.repeat(len(drawn) // shape[0], 0).repeat(len(drawn) // shape[0], 1)).any(2)
    centre = np.argwhere(changed).mean(0) / drawn.shape[:2]
    np.testing.assert_allclose(centre, (0.515, 0.515), atol=0.08)


def test_what_the_model_did_not_see_has_no_colour() -> None:
    preprocessing = Preprocessing(height=64, width=64, channels=3, interpolation="area", fit="crop")
    everything = np.full((GRID, GRID), 0.5, np.float32)
    [top, bottom, left, right] = preprocessing.window(100, 400)
    assert (top, bottom, left, right) == (0, 1, 0.375, 0.625)
    colours = heatmap(everything, 100, 400, (top, bottom, left, right))[..., 3]
    assert (colours[:, 150:250] > 0).all()
    assert not colours[:, :150].any()
    assert not colours[:, 250:].any()


@pytest.mark.parametrize("fit", ["stretch", "pad", "crop"])
@pytest.mark.parametrize("shape", [(2, 1024), (1024, 2)])
def test_a_very_long_image_has_a_heat_map(fit: Fit, shape: tuple[int, int]) -> None:
    preprocessing = Preprocessing(height=64, width=64, channels=3, interpolation="area", fit=fit)
    seen = explanation(np.full((GRID, GRID), 0.5, np.float32), np.zeros((*shape, 3), np.uint8))
    seen = replace(seen, window=preprocessing.window(*shape))
    assert overlay(seen).any()
    assert heatmap(seen.drops, window=seen.window)[..., 3].any()


def test_a_tiny_drop_does_not_look_strong() -> None:
    strong, weak, none = (heatmap(one_region(3, 3, drop))[..., 3].max() for drop in (0.3, 0.001, 0.0))
    assert strong > 0.9 * STRONGEST * 255
    assert weak < 10
    assert none == 0


def test_an_overlay_keeps_the_picture_outside_and_under_the_regions() -> None:
    original = np.random.default_rng(0).integers(0, 256, (300, 200, 3), np.uint8)
    drawn = overlay(explanation(one_region(0, 0, 0.5), original))
    assert drawn.shape == original.shape
    assert (drawn[150:] == original[150:]).all()
    correlation = np.corrcoef(drawn[:20, :12].astype(float).ravel(), original[:20, :12].astype(float).ravel())[0, 1]
    assert correlation > 0.3, "the picture shows through"
    assert overlay(explanation(one_region(0, 0, 0.5), original[:8, :6])).shape == (256, 192, 3)
    gray = overlay(explanation(one_region(0, 0, 0.5), original[..., :1]))
    assert (gray[200, :, 0] == gray[200, :, 1]).all()
    assert LONGEST_SIDE >= 256
