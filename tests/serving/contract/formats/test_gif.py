import io
import struct
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from serving.contract.decode import decode
from serving.contract.formats.gif import MAX_BLOCKS
from serving.contract.formats.image_header import ImageError, read_header
from tests.support import forged
from tests.support.forged import encoded
from tests.support.pictures import RGB

GIF = encoded(RGB.quantize(64), "GIF")
TRAILER = b"\x3b"


def by_pillow(data: bytes) -> np.ndarray:
    image = Image.open(io.BytesIO(data)).convert("RGBA")
    return np.asarray(Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB"))


@settings(max_examples=150, deadline=None)
@given(
    size=st.tuples(st.integers(8, 120), st.integers(8, 120)),
    colours=st.integers(2, 256),
    interlaced=st.booleans(),
    transparent=st.none() | st.integers(0, 255),
    seed=st.integers(0, 2**32 - 1),
)
def test_a_gif_gives_the_pixels_that_pillow_gives(
    size: tuple[int, int], colours: int, interlaced: bool, transparent: int | None, seed: int
) -> None:
    noise = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    options = {} if transparent is None else {"transparency": transparent % colours}
    data = encoded(Image.fromarray(noise).quantize(colours), "GIF", interlace=int(interlaced), **options)
    assert np.array_equal(decode(data), by_pillow(data))
    header = read_header(data)
    assert (header.format, header.height, header.width, header.frames) == ("GIF", *size, 1)
    assert header.transparent == ("transparency" in Image.open(io.BytesIO(data)).info)


def test_what_a_frame_does_not_cover_is_white() -> None:
    at = GIF.index(b"\x2c", 13 + 3 * 64)
    assert GIF[at : at + 5] == b"\x2c\0\0\0\0"
    data = GIF[:6] + struct.pack("<HH", 50, 60) + GIF[10:at] + struct.pack("<BHH", 0x2C, 3, 7) + GIF[at + 5 :]
    expected = np.full((60, 50, 3), 255, np.uint8)
    expected[7:37, 3:43] = by_pillow(GIF)
    assert np.array_equal(decode(data), expected)
    assert read_header(data).transparent


def test_a_frame_beyond_the_picture_is_refused() -> None:
    data = GIF[:6] + struct.pack("<HH", 20, 20) + GIF[10:]
    with pytest.raises(ImageError, match="reaches beyond"):
        decode(data)


def test_an_animation_is_refused_before_its_second_frame_is_decoded() -> None:
    data = forged.animated("GIF", 5)
    assert read_header(data).frames == 2
    with pytest.raises(ImageError) as refused:
        decode(data)
    assert refused.value.code == "animated_image"


def test_a_file_cut_anywhere_is_refused() -> None:
    for length in range(len(GIF) - 1):
        with pytest.raises(ImageError):
            decode(GIF[:length])


def test_a_flood_of_blocks_is_refused_in_no_time() -> None:
    comments = b"\x21\xfe" + b"\x01x" * 4_000_000 + b"\0"
    start = time.process_time()
    for data in (GIF[:-1] + comments + TRAILER, GIF[:-1] + b"\x21\xfe\0" * 3_000_000 + TRAILER):
        with pytest.raises(ImageError, match=f"more than {MAX_BLOCKS:,} blocks"):
            read_header(data)
    assert time.process_time() - start < 1


def test_a_bomb_is_refused_by_its_header() -> None:
    with pytest.raises(ImageError) as refused:
        decode(GIF[:6] + struct.pack("<HH", 65_000, 65_000) + GIF[10:])
    assert refused.value.code == "image_too_large"


def test_a_frame_that_claims_more_than_the_picture_is_not_decoded() -> None:
    at = GIF.index(b"\x2c", 13 + 3 * 64)
    data = GIF[: at + 5] + struct.pack("<HH", 65_000, 65_000) + GIF[at + 9 :]
    with pytest.raises(ImageError, match="reaches beyond"):
        decode(data)
