import dataclasses
import io
import json
import struct
import subprocess
import sys
import zlib
from typing import Any

import albumentations as A
import cv2
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from PIL import ExifTags, Image, ImageOps

from serving.contract.card.model_card import CardError, ModelCard
from serving.contract.decode import INTERPOLATION_FLAGS, Channels, Fit, Interpolation, Preprocessing, decode, fit
from serving.contract.formats.image_header import ImageError
from tests.support.forged import SIGNATURE, chunk, encoded
from tests.support.mutated_images import FUZZED, JPEG, MUTANTS, PNG
from tests.support.paths import ROOT
from tests.support.pictures import RGB, RGBA, SMOOTH

RNG = np.random.default_rng(1)


def on_white(image: Image.Image) -> np.ndarray:
    background = Image.new("RGBA", image.size, "white")
    return np.asarray(Image.alpha_composite(background, image.convert("RGBA")).convert("RGB"))


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
        "tiff": (encoded(RGB, "TIFF"), SMOOTH),
        "gif": (encoded(RGB.quantize(16), "GIF"), np.asarray(RGB.quantize(16).convert("RGB"))),
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
    assert np.array_equal(decode(data), expected)


def test_decode_converts_cmyk_and_scales_16_bits() -> None:
    cmyk = encoded(RGB.convert("CMYK"), "JPEG", quality=100, subsampling=0)
    reference = np.asarray(Image.open(io.BytesIO(cmyk)).convert("RGB"))
    assert np.abs(decode(cmyk).astype(int) - reference).max() <= 1
    deep = bytes(cv2.imencode(".png", SMOOTH.astype(np.uint16)[..., ::-1] * 257)[1])
    assert np.array_equal(decode(deep), SMOOTH)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("orientation", range(10))
def test_decode_applies_exif_orientation_once(kind: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    data = encoded(RGB, kind, exif=exif, **({"lossless": True} if kind == "WEBP" else {}))
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    assert np.array_equal(decode(data), np.asarray(upright))


def test_gray_is_one_channel_and_the_same_from_gray_or_colour_files() -> None:
    gray = RGB.convert("L")
    one = decode(encoded(gray, "PNG"), channels=1)
    assert one.shape == (30, 40, 1)
    assert np.array_equal(one, decode(encoded(gray.convert("RGB"), "PNG"), channels=1))


FRAMES = [Image.fromarray(RNG.integers(0, 256, (20, 20, 3), dtype=np.uint8)) for _ in range(3)]
BAD = {
    "nothing": (b"", "empty_image"),
    "text": (b"hello", "unsupported_image_format"),
    "jpeg 2000": (encoded(RGB, "JPEG2000"), "unsupported_image_format"),
    "gif cut": (encoded(RGB, "GIF")[:-30], "undecodable_image"),
    "tiff cut": (encoded(RGB, "TIFF")[:-30], "undecodable_image"),
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
    "animated gif": (encoded(FRAMES[0], "GIF", save_all=True, append_images=FRAMES[1:]), "animated_image"),
    "animated webp": (encoded(FRAMES[0], "WEBP", save_all=True, append_images=FRAMES[1:]), "animated_image"),
}


@pytest.mark.parametrize(("data", "code"), BAD.values(), ids=BAD)
def test_decode_refuses_by_name(data: bytes, code: str) -> None:
    with pytest.raises(ImageError) as refused:
        decode(data)
    assert refused.value.code == code


def test_limits_are_settable_and_exact() -> None:
    data = encoded(RGB, "PNG")
    decode(data, max_bytes=len(data), max_pixels=30 * 40)
    too_low: list[dict[str, Any]] = [{"max_bytes": len(data) - 1}, {"max_pixels": 30 * 40 - 1}]
    for limits in too_low:
        with pytest.raises(ImageError):
            decode(data, **limits)


SIZES = st.tuples(st.integers(8, 120), st.integers(8, 120))
SEEDS = st.integers(0, 2**32 - 1)
MODES = st.sampled_from(["1", "L", "LA", "P", "RGB", "RGBA"])
WITH_EXIF = st.sampled_from(["JPEG", "PNG", "WEBP"])
CHANNELS = st.sampled_from([1, 3])
DEPTHS = st.sampled_from([1, 2, 4, 8, 16])
COLORS = st.sampled_from([0, 2, 3, 4, 6])  # as PNG numbers them: gray, RGB, palette, gray and alpha, RGBA


def noise(size: tuple[int, int], seed: int, channels: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (*size, channels), dtype=np.uint8)


@settings(max_examples=150, deadline=None)
@given(
    size=SIZES,
    seed=SEEDS,
    mode=st.sampled_from(["1", "L", "LA", "P", "RGB", "RGBA"]),
    kind=st.sampled_from(["PNG", "WEBP", "BMP"]),
)
def test_decode_gives_the_pixels_that_pillow_gives_of_any_lossless_image(
    size: tuple[int, int], seed: int, mode: str, kind: str
) -> None:
    image = Image.fromarray(noise(size, seed, 4), "RGBA").convert("RGB" if mode == "P" else "RGBA")
    assume(not (kind == "BMP" and mode in ("LA", "RGBA")))
    image = image.quantize(17) if mode == "P" else image.convert(mode)
    data = encoded(image, kind, **({"lossless": True, "exact": True} if kind == "WEBP" else {}))
    assert np.array_equal(decode(data), on_white(Image.open(io.BytesIO(data))))


@pytest.mark.parametrize("header", [40, 56, 108, 124])
def test_opacity_of_a_bmp_counts_where_its_header_has_a_mask_for_it(header: int) -> None:
    pixels = noise((12, 9), 0, 4)  # blue, green, red, opacity
    height, width = pixels.shape[:2]
    masks = struct.pack("<4I", 0xFF0000, 0xFF00, 0xFF, 0xFF000000)
    info = struct.pack(
        "<IiiHHIIiiII", header, width, -height, 1, 32, 3 if header > 40 else 0, pixels.nbytes, 0, 0, 0, 0
    )
    info += (masks if header > 40 else b"") + bytes(max(0, header - 56))
    data = struct.pack("<2sIHHI", b"BM", 14 + header + pixels.nbytes, 0, 0, 14 + header) + info + pixels.tobytes()
    colour, opacity = pixels[..., 2::-1].astype(int), pixels[..., 3:].astype(int)
    expected = on_white(Image.fromarray(np.dstack([colour, opacity]).astype(np.uint8), "RGBA"))
    assert np.array_equal(decode(data), expected if header > 40 else colour)


@settings(max_examples=60, deadline=None)
@given(
    size=SIZES,
    seed=SEEDS,
    depth=st.sampled_from([1, 2, 4, 8, 16]),
    color=st.sampled_from([0, 2, 3, 4, 6]),
    keyed=st.booleans(),
)
def test_decode_scales_every_depth_of_png_and_applies_colour_keys(
    size: tuple[int, int], seed: int, depth: int, color: int, keyed: bool
) -> None:
    """Built by hand, with the pixels that the PNG specification gives them: Pillow errs on keys of shallow grays."""
    channels = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[color]
    assume(depth >= 8 if channels > 1 else depth <= (8 if color == 3 else 16))
    assume(not (keyed and color in (4, 6)))
    rng = np.random.default_rng(seed)
    samples = rng.integers(0, 2**depth, (*size, channels), dtype=np.uint32)
    palette = rng.integers(0, 256, (2 ** min(depth, 8), 3), dtype=np.uint8)
    key = samples[0, 0]
    bits_ = ((samples[..., None] >> np.arange(depth)[::-1]) & 1).astype(np.uint8).reshape(size[0], -1)
    rows = b"".join(b"\0" + np.packbits(row).tobytes() for row in bits_)
    extra = chunk(b"PLTE", palette.tobytes()) if color == 3 else b""
    if keyed:
        one_clear = bytes(int(key[0])).replace(b"\0", b"\xff") + b"\0"
        extra += chunk(b"tRNS", one_clear if color == 3 else struct.pack(f">{channels}H", *key))
    header = struct.pack(">IIBBBBB", size[1], size[0], depth, color, 0, 0, 0)
    data = SIGNATURE + chunk(b"IHDR", header) + extra + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")

    values = samples >> 8 if depth == 16 else samples * 255 // (2**depth - 1)
    rgb = palette[samples[..., 0]].astype(np.uint32) if color == 3 else np.repeat(values[..., :1], 3, 2)
    rgb = values[..., :3] if channels >= 3 else rgb
    if channels in (2, 4):
        alpha = values[..., -1:]
        rgb = (rgb * alpha + 255 * (255 - alpha) + 127) // 255
    if keyed:
        rgb = np.where((samples == key).all(2, keepdims=True), 255, rgb)
    difference = np.abs(decode(data).astype(int) - rgb)
    assert difference.max() <= (1 if depth == 16 else 0)


@settings(max_examples=100, deadline=None)
@given(
    size=SIZES,
    seed=SEEDS,
    orientation=st.integers(1, 8),
    kind=st.sampled_from(["JPEG", "PNG", "WEBP"]),
    channels=st.sampled_from([1, 3]),
)
def test_all_eight_orientations_of_a_picture_are_the_same_picture(
    size: tuple[int, int], seed: int, orientation: int, kind: str, channels: Channels
) -> None:
    options = {"lossless": True} if kind == "WEBP" else {}
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    stored = encoded(Image.fromarray(noise(size, seed, 3)), kind, exif=exif, **options)
    plain = encoded(Image.fromarray(noise(size, seed, 3)), kind, **options)
    witness = ImageOps.exif_transpose(Image.open(io.BytesIO(stored)))
    upright = decode(stored, channels)
    assert upright.shape == (witness.height, witness.width, channels)
    assert sorted(upright.ravel()) == sorted(decode(plain, channels).ravel())
    if kind != "JPEG" and channels == 3:
        assert np.array_equal(upright, np.asarray(witness))


@settings(max_examples=100, deadline=None)
@given(size=SIZES, seed=SEEDS, kind=st.sampled_from(["PNG", "BMP"]))
def test_decoding_what_was_decoded_changes_nothing(size: tuple[int, int], seed: int, kind: str) -> None:
    first = decode(encoded(Image.fromarray(noise(size, seed, 4), "RGBA").convert("RGB"), kind))
    assert np.array_equal(decode(encoded(Image.fromarray(first), kind)), first)


@settings(max_examples=60, deadline=None)
@given(
    source=SIZES,
    target=SIZES,
    seed=SEEDS,
    channels=st.sampled_from([1, 3]),
    interpolation=st.sampled_from(["area", "linear"]),
)
def test_fit_twice_is_fit_once_and_one_colour_stays_that_colour(
    source: tuple[int, int], target: tuple[int, int], seed: int, channels: int, interpolation: Interpolation
) -> None:
    fitted = fit(noise(source, seed, channels), *target, interpolation)
    assert fitted.shape == (*target, channels)
    assert np.array_equal(fit(fitted, *target, interpolation), fitted)
    flat = np.full((*source, channels), seed % 256, np.uint8)
    assert np.array_equal(fit(flat, *target, interpolation), np.full((*target, channels), seed % 256, np.uint8))


@pytest.mark.slow
def test_no_mutant_of_an_image_does_more_than_be_refused() -> None:
    """In a process of its own, so that a signal is noticed; each decoded or refused within 2 s of CPU and 300 MiB."""
    command = [sys.executable, "-m", "tests.support.mutated_images"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=250, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    results = [json.loads(line) for line in done.stdout.splitlines()]
    assert [name for name, *_ in results] == list(FUZZED)
    for name, refused, slowest_s, mebibytes in results:
        assert 0 < refused < MUTANTS, name
        assert slowest_s < 2, name
        assert mebibytes < 300, name


@settings(max_examples=100, deadline=None)
@given(
    source=st.tuples(st.integers(8, 300), st.integers(8, 300), st.sampled_from([1, 3])),
    target=st.tuples(st.integers(8, 96), st.integers(8, 96)),
    interpolation=st.sampled_from(["area", "linear"]),
    seed=st.integers(0, 2**32 - 1),
)
def test_fit_is_what_albumentations_resize_does(
    source: tuple[int, int, int], target: tuple[int, int], interpolation: Interpolation, seed: int
) -> None:
    pixels = np.random.default_rng(seed).integers(0, 256, source, dtype=np.uint8)
    resize = A.Resize(*target, interpolation=INTERPOLATION_FLAGS[interpolation])
    assert np.array_equal(fit(pixels, *target, interpolation), resize(image=pixels)["image"])


@settings(max_examples=200, deadline=None)
@given(
    source=st.tuples(st.integers(8, 300), st.integers(8, 300), st.sampled_from([1, 3])),
    target=st.tuples(st.integers(8, 96), st.integers(8, 96)),
    interpolation=st.sampled_from(["area", "linear"]),
    fit_mode=st.sampled_from(["pad", "crop"]),
    seed=st.integers(0, 2**32 - 1),
)
def test_padded_and_cropped_images_are_what_albumentations_makes(
    source: tuple[int, int, int], target: tuple[int, int], interpolation: Interpolation, fit_mode: Fit, seed: int
) -> None:
    pixels = np.random.default_rng(seed).integers(0, 256, source, dtype=np.uint8)
    flag = INTERPOLATION_FLAGS[interpolation]
    steps = {
        "pad": [
            A.LongestMaxSize(max_size_hw=target, interpolation=flag),
            A.PadIfNeeded(*target, border_mode=cv2.BORDER_CONSTANT, fill=seed % 256),
        ],
        "crop": [A.SmallestMaxSize(max_size_hw=target, interpolation=flag), A.CenterCrop(*target)],
    }[fit_mode]
    preprocessing = Preprocessing(
        height=target[0],
        width=target[1],
        channels=source[2],  # type: ignore[arg-type]
        interpolation=interpolation,
        fit=fit_mode,
        fill=seed % 256,
    )
    fitted = preprocessing.fitted(pixels)
    assert fitted.flags.c_contiguous
    assert np.array_equal(fitted, A.Compose(steps)(image=pixels)["image"])
    top, bottom, left, right = preprocessing.window(*source[:2])
    assert (bottom - top) * (right - left) == pytest.approx(
        np.prod(target) / np.prod(preprocessing.resized_size(*source[:2]))
    )
    assert top + bottom == pytest.approx(1)
    assert left + right == pytest.approx(1)


def test_a_line_is_not_resized_to_gigabytes() -> None:
    """224 x 1,834,000 px, to take 224 x 224 of them."""
    cover = Preprocessing(height=224, width=224, channels=3, interpolation="linear", fit="crop")
    line = np.zeros((65_500, 8, 3), np.uint8)
    with pytest.raises(ImageError, match="224 x 1,834,000; at most 40 megapixels may be cropped") as refused:
        cover.fitted(line)
    assert refused.value.code == "image_too_large"
    assert cover.fitted(line[:4000]).shape == (224, 224, 3)
    with pytest.raises(ImageError, match="at most 2 megapixels"):
        cover(encoded(Image.fromarray(line[:4000]), "PNG"), max_pixels=2_000_000)
    assert dataclasses.replace(cover, fit="stretch").fitted(line).shape == (224, 224, 3)


@pytest.mark.parametrize("shape", [(10, 5000, 3), (5000, 10, 3)])
def test_a_very_long_image_has_at_least_a_line(shape: tuple[int, int, int]) -> None:
    made = Preprocessing(height=64, width=64, channels=3, interpolation="area", fit="pad", fill=7)
    fitted = made.fitted(np.full(shape, 200, np.uint8))
    assert fitted.shape == (64, 64, 3)
    assert sorted(np.unique(fitted, return_counts=True)[1]) == [64 * 3, 63 * 64 * 3]


def test_a_card_names_the_formats_that_the_data_had(card: ModelCard) -> None:
    assert card.formats == ("JPEG", "PNG")
    older = {name: value for name, value in json.loads(card.to_json()).items() if name != "formats"}
    assert ModelCard.from_json(json.dumps(older)).formats == ()


def test_a_card_survives_its_own_json(card: ModelCard) -> None:
    assert ModelCard.from_json(card.to_json()) == card


def test_a_card_of_version_1_stretches(card: ModelCard) -> None:
    value = json.loads(card.to_json())
    old = value | {"contract_version": 1}
    old["preprocessing"] = {
        name: value["preprocessing"][name] for name in ("height", "width", "channels", "interpolation")
    }
    read = ModelCard.from_json(json.dumps(old))
    assert read.preprocessing.fit == "stretch"
    assert read == dataclasses.replace(card, contract_version=1)


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
