import dataclasses
import io
import json
import struct
import zlib

import albumentations as A
import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import ExifTags, Image, ImageOps

from serving import contract
from serving.contract import CardError, ImageError, ModelCard
from serving.model import open_model

RNG = np.random.default_rng(0)
SMOOTH = cv2.resize(RNG.integers(0, 256, (6, 8, 3), dtype=np.uint8), (40, 30), interpolation=cv2.INTER_CUBIC)
ALPHA = RNG.integers(0, 256, SMOOTH.shape[:2], dtype=np.uint8)
RGB = Image.fromarray(SMOOTH)
RGBA = Image.fromarray(np.dstack([SMOOTH, ALPHA]))


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def on_white(image: Image.Image) -> np.ndarray:
    background = Image.new("RGBA", image.size, "white")
    return np.asarray(Image.alpha_composite(background, image.convert("RGBA")).convert("RGB"))


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_header(width: int, height: int) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("data", "expected"),
    {
        "png": (encoded(RGB, "PNG"), SMOOTH),
        "bmp": (encoded(RGB, "BMP"), SMOOTH),
        "webp": (encoded(RGB, "WEBP", lossless=True), SMOOTH),
        "jpeg": (encoded(RGB, "JPEG"), np.asarray(Image.open(io.BytesIO(encoded(RGB, "JPEG"))))),
        "gray": (encoded(RGB.convert("L"), "PNG"), np.asarray(RGB.convert("L").convert("RGB"))),
        "bilevel": (encoded(RGB.convert("1"), "PNG"), np.asarray(RGB.convert("1").convert("RGB"))),
        "palette": (encoded(RGB.quantize(16), "PNG"), np.asarray(RGB.quantize(16).convert("RGB"))),
        "rgba png": (encoded(RGBA, "PNG"), on_white(RGBA)),
        "rgba webp": (encoded(RGBA, "WEBP", lossless=True, exact=True), on_white(RGBA)),
        "gray and alpha": (encoded(RGBA.convert("LA"), "PNG"), on_white(RGBA.convert("LA"))),
        "gray and colour key": (
            encoded(RGB.convert("L"), "PNG", transparency=100),
            on_white(Image.open(io.BytesIO(encoded(RGB.convert("L"), "PNG", transparency=100)))),
        ),
        "palette and alpha": (
            encoded(RGB.quantize(16), "PNG", transparency=3),
            on_white(Image.open(io.BytesIO(encoded(RGB.quantize(16), "PNG", transparency=3)))),
        ),
    }.values(),
)
def test_decode_gives_the_pixels_that_pillow_gives(data: bytes, expected: np.ndarray) -> None:
    assert np.array_equal(contract.decode(data), expected)


def test_decode_converts_cmyk_and_scales_16_bits() -> None:
    cmyk = encoded(RGB.convert("CMYK"), "JPEG", quality=100, subsampling=0)
    reference = np.asarray(Image.open(io.BytesIO(cmyk)).convert("RGB"))
    assert np.abs(contract.decode(cmyk).astype(int) - reference).max() <= 1
    deep = bytes(cv2.imencode(".png", SMOOTH.astype(np.uint16)[..., ::-1] * 257)[1])
    assert np.array_equal(contract.decode(deep), SMOOTH)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("orientation", range(10))
def test_decode_applies_exif_orientation_once(kind: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    data = encoded(RGB, kind, exif=exif, **({"lossless": True} if kind == "WEBP" else {}))
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    assert np.array_equal(contract.decode(data), np.asarray(upright))


def test_gray_is_one_channel_and_the_same_from_gray_or_colour_files() -> None:
    gray = RGB.convert("L")
    one = contract.decode(encoded(gray, "PNG"), channels=1)
    assert one.shape == (30, 40, 1)
    assert np.array_equal(one, contract.decode(encoded(gray.convert("RGB"), "PNG"), channels=1))


FRAMES = [Image.fromarray(RNG.integers(0, 256, (20, 20, 3), dtype=np.uint8)) for _ in range(3)]
JPEG, PNG = encoded(RGB, "JPEG"), encoded(RGB, "PNG")
BAD = {
    "nothing": (b"", "empty_image"),
    "text": (b"hello", "unsupported_image_format"),
    "gif": (encoded(RGB, "GIF"), "unsupported_image_format"),
    "tiff": (encoded(RGB, "TIFF"), "unsupported_image_format"),
    "wave": (b"RIFF\0\0\0\0WAVE", "unsupported_image_format"),
    "junk before jpeg": (b"junk" + JPEG, "unsupported_image_format"),
    "only a signature": (PNG[:8], "undecodable_image"),
    "jpeg cut in half": (JPEG[: len(JPEG) // 2], "undecodable_image"),
    "jpeg cut at the end": (JPEG[:-5], "undecodable_image"),
    "png cut": (PNG[: len(PNG) // 2], "undecodable_image"),
    "png without end": (PNG[:-12], "undecodable_image"),
    "bmp signature": (b"BM", "undecodable_image"),
    "zero size": (png_header(0, 0), "image_too_small"),
    "1 px": (encoded(RGB.resize((1, 1)), "PNG"), "image_too_small"),
    "thin": (png_header(1, 20_000), "image_too_small"),
    "bomb": (png_header(30_000, 30_000), "image_too_large"),
    "bomb for two decoders": (png_header(65_500, 65_500), "image_too_large"),
    "bomb that Pillow only warns of": (png_header(10_000, 10_000), "image_too_large"),
    "largest number": (png_header(2**31 - 1, 2**31 - 1), "image_too_large"),
    "animated png": (encoded(FRAMES[0], "PNG", save_all=True, append_images=FRAMES[1:]), "animated_image"),
    "animated webp": (encoded(FRAMES[0], "WEBP", save_all=True, append_images=FRAMES[1:]), "animated_image"),
}


@pytest.mark.parametrize(("data", "code"), BAD.values(), ids=BAD)
def test_decode_refuses_by_name(data: bytes, code: str) -> None:
    with pytest.raises(ImageError) as refused:
        contract.decode(data)
    assert refused.value.code == code


def test_limits_are_settable_and_exact() -> None:
    data = encoded(RGB, "PNG")
    contract.decode(data, max_bytes=len(data), max_pixels=30 * 40)
    for limits in ({"max_bytes": len(data) - 1}, {"max_pixels": 30 * 40 - 1}):
        with pytest.raises(ImageError):
            contract.decode(data, **limits)


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_decode_raises_nothing_but_its_own_error(data: st.DataObject) -> None:
    mutated = bytearray(data.draw(st.sampled_from([JPEG, PNG, encoded(RGBA, "WEBP"), encoded(RGB, "BMP")])))
    for position, value in data.draw(
        st.lists(st.tuples(st.integers(0, len(mutated) - 1), st.integers(0, 255)), max_size=8)
    ):
        mutated[position] = value
    try:
        pixels = contract.decode(bytes(mutated[: data.draw(st.integers(0, len(mutated)))]))
    except ImageError:
        return
    assert pixels.dtype == np.uint8
    assert pixels.shape[2] == 3


@settings(max_examples=100, deadline=None)
@given(
    source=st.tuples(st.integers(8, 300), st.integers(8, 300), st.sampled_from([1, 3])),
    target=st.tuples(st.integers(8, 96), st.integers(8, 96)),
    interpolation=st.sampled_from(["area", "linear"]),
    seed=st.integers(0, 2**32 - 1),
)
def test_fit_is_what_albumentations_resize_does(
    source: tuple[int, int, int], target: tuple[int, int], interpolation: contract.Interpolation, seed: int
) -> None:
    pixels = np.random.default_rng(seed).integers(0, 256, source, dtype=np.uint8)
    resize = A.Resize(*target, interpolation=contract.INTERPOLATION_FLAGS[interpolation])
    assert np.array_equal(contract.fit(pixels, *target, interpolation), resize(image=pixels)["image"])


@pytest.fixture(scope="module")
def card(run) -> ModelCard:
    return open_model(run / "model.onnx").card


def test_a_card_survives_its_own_json(card: ModelCard) -> None:
    assert ModelCard.from_json(card.to_json()) == card


def test_a_card_is_refused_by_name(card: ModelCard) -> None:
    value = json.loads(card.to_json())
    faults = {
        "version 99": value | {"contract_version": 99},
        "classes": {name: value[name] for name in value if name != "classes"},
        "surprise": value | {"surprise": 1},
        "preprocessing.height": value | {"preprocessing": value["preprocessing"] | {"height": "tall"}},
        "interpolation": value | {"preprocessing": value["preprocessing"] | {"interpolation": "cubic"}},
        "not a JSON object": [],
    }
    for name, fault in faults.items():
        with pytest.raises(CardError, match=name):
            ModelCard.from_json(json.dumps(fault))
    assert dataclasses.replace(card, name="other") != card
