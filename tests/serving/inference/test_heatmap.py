import numpy as np

from serving.inference.heatmap import AGAINST, FOR, HEATMAP_SIDE, STRONGEST, heatmap, overlay
from serving.inference.occlusion import GRID, LONGEST_SIDE, Explanation


def explanation(drops: np.ndarray, original: np.ndarray) -> Explanation:
    fitted = np.zeros((8, 8, original.shape[2]), np.uint8)
    return Explanation(label="a", confidence=0.9, drops=drops, original=original, fitted=fitted, model_version="1")


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
