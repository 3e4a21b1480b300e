from unittest.mock import Mock

import cv2
import numpy as np
import pytest

from tests.training.data.test_duplicates import picture
from training.data import overlay
from training.data.duplicates import fingerprint
from training.data.overlay import COARSE_SIDE, SIDE, WAYS


def textures(*pictures: np.ndarray) -> np.ndarray:
    return np.stack([fingerprint(pixels)["texture"] for pixels in pictures])


PICTURES = [picture(seed) for seed in range(12)]
CUT = [pixels[6:, 3:115] for pixels in PICTURES]  # 5 % of the height, 7 % of the width


def correlation(whole: np.ndarray, part: np.ndarray, shares: tuple[float, float]) -> float:
    """By OpenCV, one pair alone."""
    height, width = (round(share * side) for share, side in zip(shares, whole.shape, strict=True))
    shrunk = cv2.resize(part, (width, height), interpolation=cv2.INTER_AREA)
    return float(cv2.matchTemplate(whole, shrunk, cv2.TM_CCOEFF_NORMED).max())


def alone(first: np.ndarray, second: np.ndarray) -> tuple[float, float]:
    """The similarity of the whole pictures and of the best of the two crops that are best at 32 px, by OpenCV."""
    fine = [texture.astype(np.float32) for texture in (first, second)]
    small = [cv2.resize(texture, (COARSE_SIDE, COARSE_SIDE), interpolation=cv2.INTER_AREA) for texture in fine]

    def in_way(pair: list[np.ndarray], way: tuple[tuple[float, float], bool]) -> float:
        shares, first_is_part = way
        return correlation(pair[first_is_part], pair[not first_is_part], shares)

    two = sorted(WAYS, key=lambda way: in_way(small, way), reverse=True)[:2]
    return correlation(fine[0], fine[1], (1, 1)), max(in_way(fine, way) for way in two)


def test_many_pairs_at_once_are_as_alike_as_each_alone_by_opencv() -> None:
    first = textures(*PICTURES, *PICTURES, *CUT)
    second = textures(*PICTURES[1:], PICTURES[0], *CUT, *PICTURES)
    similarity, cropped = overlay.compare(first, second, 0)
    expected = np.array([alone(*pair) for pair in zip(first, second, strict=True)])
    assert similarity == pytest.approx(expected.max(axis=1), abs=1e-5)
    assert np.array_equal(cropped, expected[:, 1] > expected[:, 0])
    assert similarity[:12].max() < 0.5
    assert similarity[12:].min() > 0.7


def test_only_pairs_that_may_be_similar_enough_are_compared_in_detail(monkeypatch: pytest.MonkeyPatch) -> None:
    detail = Mock(side_effect=overlay._crop)
    monkeypatch.setattr(overlay, "_crop", detail)
    first, second = textures(*PICTURES, *PICTURES), textures(*PICTURES[1:], PICTURES[0], *CUT)
    similarity, cropped = overlay.compare(first, second, 0.75)
    assert detail.call_count == 2 * 12
    assert not cropped[:12].any()
    assert cropped[12:].all()
    assert np.array_equal(similarity[12:], overlay.compare(first, second, 0)[0][12:])


def test_crops_are_not_compared_where_more_is_required_than_they_reach() -> None:
    first, second = textures(*PICTURES), textures(*CUT)
    _, cropped = overlay.compare(first, second, overlay.CROPS_REACH + 0.01)
    assert not cropped.any()


def test_what_has_no_texture_is_like_nothing() -> None:
    flat = np.zeros((1, SIDE, SIDE), np.int8)
    for first, second in ((flat, flat), (flat, textures(PICTURES[0])), (textures(PICTURES[0]), flat)):
        similarity, cropped = overlay.compare(first, second, 0)
        assert similarity.tolist() == [0]
        assert not cropped.any()
