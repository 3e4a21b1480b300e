import dataclasses
import io
import json

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from serving.contract.card.model_card import CardError, ModelCard
from serving.contract.decode import Preprocessing, checked_header, decode, stored_values
from serving.contract.formats.depth import HIGHEST, SHIFTED, Depth
from tests.support.pictures import ALPHA, SMOOTH
from tests.support.tiff import Layout, tiff

ALL = np.arange(HIGHEST + 1, dtype=np.uint16)
DEEP = SMOOTH.astype(np.uint16) * 16 + 5
"""12 bits in 16."""
DEPTH = Depth(low=100, high=4095)


def png(pixels: np.ndarray) -> bytes:
    order = [2, 1, 0, 3][: pixels.shape[2]] if pixels.ndim == 3 else slice(None)
    return bytes(cv2.imencode(".png", pixels[..., order] if pixels.ndim == 3 else pixels)[1])


def test_the_default_drops_the_lower_bits() -> None:
    assert np.array_equal(SHIFTED(ALL), ALL >> 8)


@given(st.integers(0, HIGHEST - 1), st.integers(1, HIGHEST))
def test_values_are_spread_in_steps_of_one_width(low: int, width: int) -> None:
    depth = Depth(low=low, high=min(low + width, HIGHEST))
    mapped = depth(ALL).astype(int)
    assert (np.diff(mapped) >= 0).all()
    assert mapped[0] == mapped[low] == 0
    inside = depth.high - low + 1
    if inside >= 256:
        assert mapped[depth.high] == mapped[-1] == 255
        sizes = np.bincount(mapped[low : depth.high + 1], minlength=256)
        assert sizes.max() - sizes.min() <= 1


@pytest.mark.parametrize(("low", "high"), [(5, 5), (9, 8), (-1, 10), (0, HIGHEST + 1)])
def test_a_range_that_is_none_is_refused(low: int, high: int) -> None:
    with pytest.raises(ValueError, match="expected 0 <= low < high"):
        Depth(low=low, high=high)


FILES = {
    "gray PNG": (png(DEEP[:, :, 0]), DEEP[:, :, :1]),
    "RGB PNG": (png(DEEP), DEEP),
    "gray TIFF": (tiff(DEEP[:, :, 0], Layout(rows=4)), DEEP[:, :, :1]),
    "RGB TIFF": (tiff(DEEP, Layout(tile=(16, 16), planar=True)), DEEP),
}


@pytest.mark.parametrize(("data", "values"), FILES.values(), ids=FILES)
def test_every_format_of_16_bits_is_mapped_by_the_card(data: bytes, values: np.ndarray) -> None:
    assert np.array_equal(stored_values(data, checked_header(data)), values)
    assert np.array_equal(decode(data, depth=DEPTH), np.broadcast_to(DEPTH(values), SMOOTH.shape))
    assert np.array_equal(decode(data), np.broadcast_to(values >> 8, SMOOTH.shape))
    preprocessing = Preprocessing(height=30, width=40, channels=3, interpolation="area", depth=DEPTH)
    assert np.array_equal(preprocessing(data), decode(data, depth=DEPTH))


def test_opacity_is_not_mapped() -> None:
    deep = np.dstack([DEEP, ALPHA.astype(np.uint16) * 257])
    alpha = ALPHA[:, :, None].astype(int)
    expected = (DEPTH(DEEP) * alpha + 255 * (255 - alpha) + 127) // 255
    for data in (png(deep), tiff(deep)):
        assert np.array_equal(decode(data, depth=DEPTH), expected)
        assert np.array_equal(stored_values(data, checked_header(data)), deep)


def test_a_transparent_gray_is_white_at_any_depth() -> None:
    buffer = io.BytesIO()
    Image.fromarray(DEEP[:, :, 0]).save(buffer, "PNG", transparency=int(DEEP[3, 4, 0]))
    expected = np.where(DEEP[:, :, :1] == DEEP[3, 4, 0], 255, DEPTH(DEEP[:, :, :1]))
    assert np.array_equal(decode(buffer.getvalue(), depth=DEPTH), np.broadcast_to(expected, SMOOTH.shape))


def test_8_bits_are_left_as_they_are() -> None:
    assert np.array_equal(decode(png(SMOOTH), depth=DEPTH), SMOOTH)


def test_a_card_carries_it_and_an_older_one_shifts(card: ModelCard) -> None:
    deep = dataclasses.replace(card, preprocessing=dataclasses.replace(card.preprocessing, depth=DEPTH))
    assert ModelCard.from_json(deep.to_json()) == deep
    value = json.loads(deep.to_json())
    assert value["preprocessing"].pop("depth") == {"low": 100, "high": 4095}
    assert ModelCard.from_json(json.dumps(value)).preprocessing.depth == SHIFTED
    value["preprocessing"]["depth"] = {"low": 10, "high": 5}
    with pytest.raises(CardError, match="depth"):
        ModelCard.from_json(json.dumps(value))
