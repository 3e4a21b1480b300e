import io
import struct
import time
import zlib
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import ExifTags, Image

from serving.contract.formats.image_header import MAX_SCANS, MAX_SEGMENTS, Header, ImageError, read_header
from tests.support import forged
from tests.support.forged import JPEG, PNG, chunk, encoded, jpeg_with, png_with, segment

MODES = {
    "JPEG": ["L", "RGB", "CMYK"],
    "PNG": ["1", "L", "LA", "P", "RGB", "RGBA", "I;16"],
    "WEBP": ["RGB", "RGBA"],
    "BMP": ["1", "L", "P", "RGB"],
    "TIFF": ["1", "L", "LA", "P", "RGB", "RGBA", "I;16"],
    "GIF": ["1", "L", "P"],
}
WITH_EXIF = ("JPEG", "PNG", "WEBP")
# Pillow's names of depths that Header does not tell apart.
SAME = {"1": "L", "I;16": "L"}


@settings(max_examples=200, deadline=None)
@given(
    kind_and_mode=st.sampled_from([(kind, mode) for kind, modes in MODES.items() for mode in modes]),
    size=st.tuples(st.integers(1, 400), st.integers(1, 400)),
    orientation=st.none() | st.integers(0, 9),
    lossless=st.booleans(),
)
def test_a_header_is_that_of_pillow(
    kind_and_mode: tuple[str, str], size: tuple[int, int], orientation: int | None, lossless: bool
) -> None:
    kind, mode = kind_and_mode
    options: dict[str, Any] = (
        {"exif": forged.exif(orientation)} if orientation is not None and kind in WITH_EXIF else {}
    )
    if kind == "WEBP":
        options |= {"lossless": lossless, "exact": True}
    data = encoded(Image.new(mode, size), kind, **options)
    witness = Image.open(io.BytesIO(data))
    header = read_header(data)
    assert (header.format, header.width, header.height) == (witness.format, *witness.size)
    assert header.frames == getattr(witness, "n_frames", 1) == 1
    assert header.transparent == (witness.mode in ("LA", "RGBA"))
    assert header.orientation == witness.getexif().get(ExifTags.Base.Orientation, 1)
    if kind not in ("BMP", "GIF"):
        assert header.mode == SAME.get(witness.mode, witness.mode)


@given(
    order=st.sampled_from("<>"),
    kind_and_form=st.sampled_from([(1, "B"), (3, "H"), (4, "I")]),
    before=st.integers(0, 20),
    gap=st.integers(0, 30),
    orientation=st.integers(0, 200),
)
def test_orientation_is_read_from_any_directory_that_tiff_allows(
    order: str, kind_and_form: tuple[int, str], before: int, gap: int, orientation: int
) -> None:
    kind, form = kind_and_form
    entries = [struct.pack(f"{order}HHII", 0x0100 + number % 18, 4, 1, 7) for number in range(before)]
    value = struct.pack(order + form, orientation).ljust(4, b"\0")
    entries.append(struct.pack(f"{order}HHI", 0x0112, kind, 1) + value)
    head = {"<": b"II*\0", ">": b"MM\0*"}[order] + struct.pack(f"{order}I", 8 + gap) + bytes(gap)
    tiff = head + struct.pack(f"{order}H", len(entries)) + b"".join(entries) + bytes(4)
    assert read_header(jpeg_with(segment(0xE1, b"Exif\0\0" + tiff))).orientation == orientation
    assert read_header(png_with(chunk(b"eXIf", tiff))).orientation == orientation


@given(st.binary(max_size=200))
def test_a_broken_exif_block_leaves_the_image_as_it_is(tiff: bytes) -> None:
    for start in (b"", b"II*\0", b"MM\0*\0\0\0\x08"):
        assert isinstance(read_header(png_with(chunk(b"eXIf", start + tiff))), Header)


@given(st.sampled_from([JPEG, PNG, forged.WEBP, forged.BMP, forged.TIFF, forged.GIF]), st.data())
def test_a_file_cut_anywhere_is_refused_by_name_or_read_as_before(data: bytes, draw: st.DataObject) -> None:
    cut = data[: draw.draw(st.integers(0, len(data) - 1))]
    try:
        assert read_header(cut) == read_header(data)
    except ImageError as error:
        assert error.code in ("unsupported_image_format", "undecodable_image")  # noqa: PT017


FLOODS: dict[str, Callable[[], bytes]] = {
    "JPEG": lambda: jpeg_with(segment(0xFE, b"") * 2_000_000),
    "fill bytes": lambda: jpeg_with(b"\xff" * 9_000_000),
    "PNG": lambda: png_with(chunk(b"teSt", b"") * 800_000),
    "IDAT": lambda: png_with(chunk(b"IDAT", b"") * 800_000),
    "scans": lambda: forged.jpeg_of_many_scans(64, MAX_SCANS),
    "APNG": lambda: png_with(chunk(b"fcTL", bytes(26)) * 200_000),
}


@pytest.mark.parametrize("flood", FLOODS.values(), ids=FLOODS)
def test_a_flood_of_segments_is_refused_in_no_time(flood: Callable[[], bytes]) -> None:
    """Read to its end, each of the large ones takes seconds."""
    data = flood()
    start = time.process_time()
    with pytest.raises(ImageError, match=rf"more than ({MAX_SEGMENTS:,}|{MAX_SCANS}) s"):
        read_header(data)
    assert time.process_time() - start < 1


def test_as_many_segments_as_are_allowed_are_read() -> None:
    room = MAX_SEGMENTS - len(list(_kinds(PNG))) - 1
    assert read_header(png_with(chunk(b"teSt", b"") * room)) == read_header(PNG)


def _kinds(png: bytes) -> list[bytes]:
    at, kinds = 8, []
    while at < len(png):
        length, kind = struct.unpack_from(">I4s", png, at)
        kinds.append(kind)
        at += 12 + length
    return kinds


@pytest.mark.parametrize("claims", [2**31 - 1, 2**32 - 1, len(PNG)])
@pytest.mark.parametrize("kind", [b"IDAT", b"tEXt", b"PLTE"])
def test_a_chunk_longer_than_its_file_is_refused_before_the_decoder_allocates_memory(kind: bytes, claims: int) -> None:
    for data in (png_with(chunk(kind, b"a\0", claims=claims)), PNG[:-12] + chunk(kind, b"a\0", claims=claims)):
        with pytest.raises(ImageError, match="ends within a chunk"):
            read_header(data)


def test_frames_are_counted_before_any_is_decoded() -> None:
    assert read_header(forged.animated("PNG", 5)).frames == 5
    assert read_header(forged.animated("WEBP", 5)).frames > 1
    assert read_header(forged.claimed_webp(10_000)).frames > 1
    assert read_header(encoded(forged.PHOTO, "MPO", save_all=True, append_images=[forged.PHOTO])).frames == 1


def test_a_transparent_gray_has_the_scale_of_decoded_pixels() -> None:
    for depth, key, value in ((1, 1, 255), (2, 1, 85), (4, 15, 255), (8, 100, 100), (16, 40_000, 40_000)):
        rows = zlib.compress((b"\0" + bytes(8 * depth // 8)) * 8)
        data = forged.SIGNATURE + chunk(b"IHDR", forged.ihdr(8, 8, depth, 0)) + chunk(b"tRNS", struct.pack(">H", key))
        header = read_header(data + chunk(b"IDAT", rows) + chunk(b"IEND", b""))
        assert (header.transparent, header.transparent_gray) == (True, value)
