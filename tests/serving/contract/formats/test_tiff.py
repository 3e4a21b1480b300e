import io
import itertools
import json
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from serving.contract.decode import decode
from serving.contract.formats.image_header import MAX_SEGMENTS, ImageError, read_header
from tests.support.forged import encoded
from tests.support.paths import ROOT
from tests.support.pictures import ALPHA, RGB, RGBA, SMOOTH
from tests.support.tiff import Layout, Tags, tiff, with_directory

RNG = np.random.default_rng(3)
LAYOUTS = {
    "one strip": Layout(),
    "strips": Layout(rows=5),
    "tiles": Layout(tile=(16, 16)),
    "wide tiles, Deflate": Layout(tile=(16, 32), compress=True),
    "planes": Layout(planar=True),
    "tiles of planes": Layout(planar=True, tile=(16, 16)),
    "most significant byte first": Layout(order=">"),
    "planes in strips of Deflate, most significant byte first": Layout(order=">", planar=True, rows=7, compress=True),
}


def on_white(pixels: np.ndarray) -> np.ndarray:
    values = np.atleast_3d(pixels)
    values = (values >> 8).astype(np.uint8) if values.dtype == np.uint16 else values
    if values.shape[2] in (2, 4):
        alpha = values[:, :, -1:].astype(int)
        values = ((values[:, :, :-1] * alpha + 255 * (255 - alpha) + 127) // 255).astype(np.uint8)
    return np.broadcast_to(values, (*values.shape[:2], 3))


def by_pillow(data: bytes) -> np.ndarray:
    image = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    if image.mode == "I;16":
        return on_white(np.asarray(image).astype(np.uint16))
    background = Image.new("RGBA", image.size, "white")
    return np.asarray(Image.alpha_composite(background, image.convert("RGBA")).convert("RGB"))


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("samples", [1, 2, 3, 4])
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_every_layout_gives_the_values_that_were_stored(layout: Layout, samples: int, dtype: type) -> None:
    pixels: np.ndarray = RNG.integers(0, np.iinfo(dtype).max + 1, (37, 45, samples)).astype(dtype)
    data = tiff(pixels, layout)
    header = read_header(data)
    assert (header.format, header.height, header.width, header.bits) == ("TIFF", 37, 45, np.dtype(dtype).itemsize * 8)
    assert header.transparent == (samples in (2, 4))
    assert np.array_equal(decode(data), on_white(pixels))


MODES = ["1", "L", "LA", "P", "RGB", "RGBA", "I;16"]
COMPRESSIONS = [None, "tiff_lzw", "packbits", "tiff_adobe_deflate", "tiff_deflate", "jpeg"]
PAIRS = [
    (mode, compression)
    for mode, compression in itertools.product(MODES, COMPRESSIONS)
    if compression != "jpeg" or mode in ("L", "RGB")
]


@settings(max_examples=150, deadline=None)
@given(
    pair=st.sampled_from(PAIRS),
    size=st.tuples(st.integers(8, 90), st.integers(8, 90)),
    predicted=st.booleans(),
    orientation=st.none() | st.integers(1, 8),
)
def test_what_pillow_writes_is_decoded_as_pillow_decodes_it(
    pair: tuple[str, str | None], size: tuple[int, int], predicted: bool, orientation: int | None
) -> None:
    mode, compression = pair
    image = RGBA.resize(size)
    image = image.convert("RGB").quantize(200) if mode == "P" else image
    if mode == "I;16":
        image = Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 255 + 17)
    options: dict[str, Any] = {"compression": compression} if compression else {}
    tags = {317: 2} if predicted and mode != "1" and compression in ("tiff_lzw", "tiff_adobe_deflate") else {}
    tags |= {274: orientation} if orientation else {}
    data = encoded(image if mode in ("P", "I;16") else image.convert(mode), "TIFF", tiffinfo=tags, **options)
    assert np.array_equal(decode(data), by_pillow(data))


@pytest.mark.parametrize("bits", [1, 2, 4])
@pytest.mark.parametrize("photometric", [0, 1, 3])
@pytest.mark.parametrize("width", [40, 37])
def test_values_of_few_bits_are_spread_over_all_of_them(bits: int, photometric: int, width: int) -> None:
    values = RNG.integers(0, 2**bits, (20, width), dtype=np.uint8)
    places = (values[:, :, None] >> np.arange(bits)[::-1] & 1).reshape(20, -1)
    body = np.packbits(places, axis=1).tobytes()
    colours = RNG.integers(0, 65536, (3, 2**bits))
    tags: Tags = {
        256: (3, [width]),
        257: (3, [20]),
        258: (3, [bits]),
        262: (3, [photometric]),
        273: (4, [8]),
        279: (4, [len(body)]),
    }
    tags |= {320: (3, colours.ravel().tolist())} if photometric == 3 else {}
    gray = values * (255 // (2**bits - 1))
    expected = {0: on_white(255 - gray), 1: on_white(gray), 3: colours.T[values] >> 8}[photometric]
    data = with_directory(body, tags)
    assert np.array_equal(decode(data), expected)
    if bits != 2 or photometric != 0:  # Pillow has no decoder for it
        assert np.array_equal(decode(data), by_pillow(data))


def test_white_may_be_zero_in_8_and_16_bits() -> None:
    for dtype in (np.uint8, np.uint16):
        pixels = RNG.integers(0, np.iinfo(dtype).max + 1, (20, 24)).astype(dtype)
        assert np.array_equal(decode(tiff(pixels, Layout(tags={262: (3, [0])}))), on_white(np.invert(pixels)))


def test_opacity_may_be_multiplied_in_or_be_no_opacity() -> None:
    alpha = ALPHA[:, :, None].astype(int)
    multiplied = np.dstack([(SMOOTH * alpha + 127) // 255, alpha]).astype(np.uint8)
    witness = (multiplied[:, :, :3] + 255 - alpha).astype(np.uint8)
    assert np.array_equal(decode(tiff(multiplied, Layout(tags={338: (3, [1])}))), witness)
    four = np.dstack([SMOOTH, ALPHA])
    assert np.array_equal(decode(tiff(four, Layout(tags={338: (3, [0])}))), SMOOTH)


def test_the_first_page_is_the_picture() -> None:
    data = encoded(RGB, "TIFF", save_all=True, append_images=[RGB.rotate(90)])
    assert read_header(data).frames == 1
    assert np.array_equal(decode(data), SMOOTH)


FOUR, GRAY, DEEP = np.dstack([SMOOTH, ALPHA]), SMOOTH[:, :, 0], SMOOTH.astype(np.uint16) * 257
REFUSED = {
    "BigTIFF": b"II+\0" + tiff(GRAY)[4:],
    "CMYK": tiff(FOUR, Layout(tags={262: (3, [5])})),
    "CIE": tiff(SMOOTH, Layout(tags={262: (3, [8])})),
    "YCbCr": tiff(SMOOTH, Layout(tags={262: (3, [6])})),
    "32 bits": tiff(GRAY, Layout(tags={258: (3, [32])})),
    "12 bits": tiff(GRAY, Layout(tags={258: (3, [12])})),
    "differ in bits": tiff(SMOOTH, Layout(tags={258: (3, [8, 8, 16])})),
    "signed or floating": tiff(GRAY, Layout(tags={339: (3, [2])})),
    "CCITT": encoded(RGB.convert("1"), "TIFF", compression="group4"),
    "ZSTD": encoded(RGB, "TIFF", compression="zstd"),
    "5 values": tiff(np.dstack([FOUR, ALPHA]), Layout(tags={338: (3, [2, 0])})),
    "16 bits with premultiplied": tiff(np.dstack([DEEP, DEEP[:, :, :1]]), Layout(tags={338: (3, [1])})),
    "thumbnail": tiff(GRAY, Layout(tags={254: (4, [1])})),
    "reverse order": tiff(GRAY, Layout(tags={266: (3, [2])})),
    "JPEG with planes": encoded(RGBA, "TIFF", compression="jpeg"),
    "far larger": tiff(GRAY[:9, :9], Layout(tags={322: (3, [4096]), 323: (3, [4096]), 324: (4, [8]), 325: (4, [9])})),
}


@pytest.mark.parametrize(("word", "data"), REFUSED.items(), ids=REFUSED)
def test_a_kind_that_is_not_supported_is_named(word: str, data: bytes) -> None:
    with pytest.raises(ImageError, match=word) as refused:
        decode(data)
    assert refused.value.code == "unsupported_image_format"
    assert str(refused.value).endswith("is not supported")


WHOLE = tiff(SMOOTH)
DAMAGED = {
    "cut in its directory": WHOLE[:-40],
    "cut in its pixels": WHOLE[:2000],
    "without a width": tiff(GRAY, Layout(tags={256: (7, [1] * 9)}))[:60],
    "strips that overlap": tiff(SMOOTH, Layout(rows=1, tags={273: (4, [8] * 30), 279: (4, [3000] * 30)})),
    "strips that are missing": tiff(SMOOTH, Layout(rows=5, tags={273: (4, [8]), 279: (4, [600])})),
    "too many strips": tiff(SMOOTH, Layout(tags={257: (4, [60_000]), 278: (3, [1])})),
    "too many values": tiff(GRAY, Layout(tags={320: (3, [0] * 60_000)})),
    "a strip that is too short": tiff(SMOOTH, Layout(tags={279: (4, [100])})),
    "Deflate that is none": tiff(SMOOTH, Layout(tags={259: (3, [8])})),
    "Deflate of too few bytes": tiff(SMOOTH[:10], Layout(compress=True, tags={257: (3, [30]), 278: (3, [30])})),
    "LZW that is none": tiff(SMOOTH, Layout(tags={259: (3, [5])})),
    "JPEG that is none": tiff(SMOOTH, Layout(tags={259: (3, [7])})),
    "a short palette": tiff(GRAY, Layout(tags={262: (3, [3]), 320: (3, [0] * 30)})),
    "a palette without its last value": tiff(GRAY, Layout(tags={262: (3, [3]), 320: (3, [0] * 767)})),
    "empty tiles": tiff(GRAY, Layout(tags={322: (3, [0]), 323: (3, [16]), 324: (4, [8]), 325: (4, [9])})),
}


@pytest.mark.parametrize("data", DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_file_is_refused(data: bytes) -> None:
    with pytest.raises(ImageError) as refused:
        decode(data)
    assert refused.value.code == "undecodable_image"


def test_sizes_are_checked_before_pixels() -> None:
    for size, code in {
        (0, 0): "image_too_small",
        (9, 4): "image_too_small",
        (60_000, 60_000): "image_too_large",
    }.items():
        with pytest.raises(ImageError) as refused:
            decode(tiff(SMOOTH, Layout(tags={256: (4, [size[0]]), 257: (4, [size[1]])})))
        assert refused.value.code == code


# Without the checks of types that tests add, and one file a process: its peak of memory is that of one file.
ALONE = """
import json, sys, time
from pathlib import Path
from serving.contract.decode import decode
from serving.contract.formats.image_header import ImageError
from tests.support.peak import forget_peak, peak
data = Path(sys.argv[1]).read_bytes()
before, start = forget_peak(), time.process_time()
try:
    decode(data)
    code = None
except ImageError as error:
    code = error.code
print(json.dumps([code, time.process_time() - start, peak() - before]))
"""


def bombs() -> dict[str, bytes]:
    """The largest images that few bytes may hold."""
    gray = np.zeros((6299, 6301), np.uint8)
    return {
        "gray of 16 bits, Deflate": tiff(gray.astype(np.uint16), Layout(compress=True)),
        "gray, LZW": encoded(Image.fromarray(gray), "TIFF", compression="tiff_lzw"),
        "gray, LZW in one strip": encoded(
            Image.fromarray(gray[:, :6300]), "TIFF", compression="tiff_lzw", strip_size=2**30
        ),
        "odd size, LZW in one strip": encoded(Image.fromarray(gray), "TIFF", compression="tiff_lzw", strip_size=2**30),
        "RGB, Deflate in one strip": tiff(np.zeros((6300, 6300, 3), np.uint8), Layout(compress=True)),
        "RGBA of 16 bits in planes": tiff(np.zeros((4000, 4000, 4), np.uint16), Layout(compress=True, planar=True)),
        "RGBA of 16 bits": tiff(np.zeros((6300, 6300, 4), np.uint16), Layout(compress=True)),
        "one bit": encoded(Image.new("1", (6300, 6300)), "TIFF", compression="packbits"),
        "as many strips as are allowed": tiff(np.zeros((MAX_SEGMENTS, 4000), np.uint8), Layout(rows=1, compress=True)),
        "JPEG": encoded(Image.new("RGB", (6300, 6300)), "TIFF", compression="jpeg"),
        "JPEG, long tables before each strip": strips_of_jpeg(10_000, 9_900),
    }


def strips_of_jpeg(count: int, segments: int) -> bytes:
    """Gray strips of one row, and tables of empty comments."""
    strip = encoded(Image.new("L", (8, 1)), "JPEG")
    tables = strip[:2] + b"\xff\xfe\0\2" * segments + strip[-2:]
    ends = np.cumsum([8, *[len(strip)] * count]).tolist()
    tags: Tags = {256: (3, [8]), 257: (3, [count]), 258: (3, [8]), 259: (3, [7]), 262: (3, [1]), 277: (3, [1])}
    tags |= {273: (4, ends[:-1]), 278: (3, [1]), 279: (4, [len(strip)] * count), 347: (7, list(tables))}
    return with_directory(strip * count, tags)


def test_strips_of_jpeg_may_repeat_short_tables() -> None:
    assert decode(strips_of_jpeg(16, 4)).shape == (16, 8, 3)
    with pytest.raises(ImageError, match="whose JPEG tables and strips or tiles, multiplied, are more than 4 MiB"):
        decode(strips_of_jpeg(1000, 2000))


@pytest.mark.parametrize(("kind", "count"), [(3, 10), (4, 5)])
def test_tables_of_jpeg_are_bytes(kind: int, count: int) -> None:
    """The entry of the tag says that its 20 bytes are larger numbers."""
    entry, other = struct.pack("<HHI", 347, 7, 20), struct.pack("<HHI", 347, kind, count)
    data = strips_of_jpeg(8, 4)
    assert data.count(entry) == 1
    with pytest.raises(ImageError, match="its JPEG tables are not bytes") as refused:
        decode(data.replace(entry, other))
    assert refused.value.code == "undecodable_image"


UNSUPPORTED = {"odd size, LZW in one strip", "RGBA of 16 bits", "JPEG, long tables before each strip"}


@pytest.mark.long
def test_bombs_take_bounded_memory_and_time(tmp_path: Path) -> None:
    for name, data in bombs().items():
        assert len(data) < 10 * 2**20, name
        (tmp_path / "bomb").write_bytes(data)
        command = [sys.executable, "-c", ALONE, str(tmp_path / "bomb")]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
        code, seconds, mebibytes = json.loads(done.stdout)
        print(name, code, f"{seconds:.2f} s", mebibytes, "MiB")
        assert code == ("unsupported_image_format" if name in UNSUPPORTED else None), name
        assert seconds < 2, (name, seconds)
        assert mebibytes < 300, (name, mebibytes)
