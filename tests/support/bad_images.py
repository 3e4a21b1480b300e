"""Bad inputs, rows 51 to 96: what is no image, is damaged, enormous, or awkward."""

import zlib

import numpy as np
from PIL import Image, ImageCms

from tests.support import forged
from tests.support.bad_inputs import MIB, files, row
from tests.support.forged import (
    BMP,
    JPEG,
    PHOTO,
    PNG,
    WEBP,
    chunk,
    encoded,
    flat,
    jpeg_with,
    png_that_claims,
    png_with,
    segment,
)
from tests.support.tiff import Layout, tiff
from tests.support.wire import form, part, raw_form

# --- 3e. Not an accepted image, by its bytes

FOREIGN = (415, "unsupported_image_format")


def foreign(number: int, *names: str) -> None:
    files(number, names[0], *FOREIGN, lambda: {name: forged.OTHERS[name] for name in names})


foreign(51, "text", "html", "json")
foreign(52, "svg")
foreign(53, "pdf")
foreign(54, "eps")
files(55, "GIF is accepted", 200, None, lambda: forged.GIF)
files(55, "animated GIF", 422, "animated_image", lambda: forged.animated("GIF", 3))
files(
    56, "TIFF is accepted, by its first page", 200, None, lambda: {"one": forged.TIFF, "two": forged.TIFF_OF_TWO_PAGES}
)
foreign(57, "ico", "tga", "ppm", "pam", "pfm", "hdr", "sun raster")
files(57, "BMP is accepted", 200, None, lambda: BMP)
foreign(58, "jpeg 2000", "avif", "heic")
foreign(59, "dicom")
foreign(60, "zip", "gzip", "tar", "npy", "pickle", "elf", "wave")
row(
    61,
    "PNG named and declared JPEG",
    200,
    None,
    raw_form(form(part(PNG, 'form-data; name="image"; filename="a.jpg"', "Content-Type: image/jpeg"))),
)
row(
    62,
    "text declared PNG",
    *FOREIGN,
    raw_form(form(part(b"hello", 'form-data; name="image"; filename="a.png"', "Content-Type: image/png"))),
)
foreign(63, "junk before a jpeg")
TAILS = {
    "zip": JPEG + forged.OTHERS["zip"],
    "html": JPEG + forged.OTHERS["html"],
    "php": png_with(chunk(b"tEXt", b"a\0<?php x-leaked ?>")),
}
files(64, "sound image with another file in it", 200, None, lambda: TAILS)

# --- 3f. Damaged

DAMAGED = (422, "undecodable_image")
# By its first bytes a file of 2 B is not yet a JPEG.
files(65, "JPEG of 2 bytes", *FOREIGN, lambda: JPEG[:2])
files(65, "JPEG of 20 bytes", *DAMAGED, lambda: JPEG[:20])
files(
    66,
    "JPEG cut",
    *DAMAGED,
    lambda: {"half": JPEG[: len(JPEG) // 2], "95 %": JPEG[: len(JPEG) * 19 // 20], "end": JPEG[:-2]},
)
BIG = encoded(Image.fromarray(forged.RNG.integers(0, 256, (200, 200, 3), dtype=np.uint8)), "JPEG")
files(67, "JPEG with zeros in its scan", 200, None, lambda: forged.zeroed(BIG, 0.5, 2000))
# In place of mozilla_1050342 and github_537, which are not ours to copy: files that OpenCV decodes to something and
# Pillow refuses, found by mutation.
files(
    68,
    "JPEG of broken entropy data",
    *DAMAGED,
    lambda: {"marker": forged.jpeg_with_a_marker_for_a_restart(), "tables": forged.jpeg_without_tables()},
)
files(
    69,
    "PNG cut",
    *DAMAGED,
    lambda: {"half": PNG[: len(PNG) // 2], "no IDAT": PNG[:33] + PNG[-12:], "signature": PNG[:8], "no IEND": PNG[:-12]},
)
files(70, "PNG of wrong checksum", *DAMAGED, lambda: {name: forged.PNGSUITE[name] for name in ("xhd", "xcs")})
# The first six have no PNG signature: by their bytes they are no PNG.
files(71, "PngSuite without signature", *FOREIGN, lambda: dict(list(forged.PNGSUITE.items())[:6]))
files(71, "PngSuite", *DAMAGED, lambda: dict(list(forged.PNGSUITE.items())[6:]))
files(64, "gif that is javascript", *DAMAGED, lambda: b"GIF89a/*" + bytes(20) + b"*/=1;alert(1)")
files(72, "WebP cut", *DAMAGED, lambda: {"200 B": WEBP[:200], "20 B": WEBP[:20], "12 B": WEBP[:12]})
# In place of the CVE-2023-4863 sample: code lengths of the same kind.
files(73, "WebP of overflowing Huffman codes", *DAMAGED, forged.webp_of_overflowing_codes)
SOF = JPEG.index(b"\xff\xc0") + 5
files(
    74,
    "no size",
    422,
    "image_too_small",
    lambda: {
        "PNG": png_that_claims(0, 0),
        "JPEG": JPEG[:SOF] + bytes(2) + JPEG[SOF + 2 :],
        "width": png_that_claims(0, 64),
    },
)
# In place of libpng's nineteen crashers: each kind of chunk with 2 MB in it.
files(
    75, "PNG of huge chunks", (200, 422), (None, "undecodable_image"), lambda: dict(forged.huge_chunks()), mebibytes=300
)
# 76, a crash of the decoder, is a test of its own: it needs a decoder that crashes.

# --- 3g. Bombs

BOMB = (422, "image_too_large")
files(77, "30,000 x 30,000 in 69 bytes", *BOMB, lambda: png_that_claims(30_000, 30_000), seconds=0.05)
files(78, "65,500 x 65,500", *BOMB, lambda: png_that_claims(65_500, 65_500), seconds=0.05)
files(
    79,
    "largest numbers",
    *BOMB,
    lambda: {"31": png_that_claims(2**31 - 1, 2**31 - 1), "32": png_that_claims(2**32 - 1, 2**32 - 1)},
    seconds=0.05,
)
files(80, "64 megapixels", *BOMB, lambda: flat(8000, 8000, "L"), seconds=0.1)
files(81, "39.7 megapixels", 200, None, lambda: {"RGB": flat(6300, 6300, "L")}, seconds=2, mebibytes=300)
files(81, "39.7 megapixels with alpha", 200, None, lambda: flat(6300, 6300, "LA"), seconds=4, mebibytes=380)
files(
    81,
    "39.7 megapixels of TIFF and GIF",
    200,
    None,
    lambda: {
        "GIF": flat(6300, 6300, "L", "GIF"),
        "TIFF": flat(6300, 6300, "RGB", "TIFF", compression="tiff_lzw"),
        "TIFF of 16 bits": flat(6300, 6300, "I;16", "TIFF", compression="tiff_adobe_deflate"),
    },
    seconds=3,
    mebibytes=300,
)
files(
    81,
    "TIFF that claims",
    *BOMB,
    lambda: tiff(forged.PIXELS, Layout(tags={256: (4, [30_000]), 257: (4, [30_000])})),
    seconds=0.05,
)
ZEROS = zlib.compress(bytes(50 * MIB))
files(
    82,
    "50 MB inflated",
    (200, 422),
    (None, "undecodable_image"),
    lambda: {
        "zTXt": png_with(chunk(b"zTXt", b"a\0\0" + ZEROS)),
        "iTXt": png_with(chunk(b"iTXt", b"a\0\1\0\0\0" + ZEROS)),
        "iCCP": png_with(chunk(b"iCCP", b"a\0\0" + ZEROS)),
    },
)
files(83, "thin", 422, "image_too_small", lambda: {"tall": flat(1, 20_000), "wide": flat(20_000, 1)})
files(84, "progressive JPEG of 500 scans", *DAMAGED, lambda: forged.jpeg_of_many_scans(6300, 500), seconds=2)
files(
    84, "progressive JPEG of 90 scans", 200, None, lambda: forged.jpeg_of_many_scans(4000, 80), seconds=3, mebibytes=300
)
TINY = {
    "GIF": forged.GIF[:-1] + b"\x21\xfe" + b"\x01x" * 4_000_000 + b"\0\x3b",
    "TIFF": tiff(forged.PIXELS, Layout(tags={257: (4, [60_000]), 278: (4, [1]), 273: (4, [8] * 30_000)})),
    "PNG": png_with(chunk(b"teSt", b"") * 800_000),
    "JPEG": jpeg_with(segment(0xFE, b"") * 2_000_000),
    "fill": jpeg_with(b"\xff" * 9_000_000),
}
files(84, "800,000 tiny segments", *DAMAGED, lambda: TINY, seconds=0.5)
files(
    85,
    "10,000 frames",
    422,
    "animated_image",
    lambda: {"APNG": forged.claimed_apng(10_000), "WebP": forged.claimed_webp(10_000)},
    seconds=0.2,
)

# --- 3h. Valid but awkward; that the answers are right, too, is tested beside `decode`

files(87, "EXIF orientations", 200, None, lambda: {str(n): forged.turned(n) for n in range(1, 9)})
files(
    88,
    "EXIF that says nothing",
    200,
    None,
    lambda: {
        **{str(n): encoded(PHOTO, "PNG", exif=forged.exif(n)) for n in (0, 9, 99)},
        "corrupt": jpeg_with(segment(0xE1, b"Exif\0\0II*\0" + b"\xff" * 40)),
        "cut": jpeg_with(segment(0xE1, b"Exif\0\0")),
        "loop": forged.exif_loop(),
    },
)
files(89, "CMYK", 200, None, lambda: encoded(PHOTO.convert("CMYK"), "JPEG"))
files(
    90,
    "gray and palettes",
    200,
    None,
    lambda: {
        "gray JPEG": encoded(PHOTO.convert("L"), "JPEG"),
        "bilevel": encoded(PHOTO.convert("1"), "PNG"),
        "gray and alpha": encoded(PHOTO.convert("LA"), "PNG"),
        "palette": encoded(PHOTO.quantize(16), "PNG"),
        "palette and colour key": encoded(PHOTO.quantize(16), "PNG", transparency=3),
    },
)
files(91, "16 bits", 200, None, lambda: encoded(Image.fromarray(forged.PIXELS[..., 0].astype(np.uint16) * 257), "PNG"))
files(92, "transparent", 200, None, lambda: {kind: flat(64, 64, "RGBA", kind) for kind in ("PNG", "WEBP")})
files(93, "animations", 422, "animated_image", lambda: {kind: forged.animated(kind, 3) for kind in ("PNG", "WEBP")})
files(93, "MPO: its first picture", 200, None, lambda: encoded(PHOTO, "MPO", save_all=True, append_images=[PHOTO]))
files(94, "1 x 1", 422, "image_too_small", lambda: flat(1, 1))
# 16 x 16 is large enough: the least side is 8 px.
files(94, "16 x 16", 200, None, lambda: flat(16, 16))
files(
    95,
    "no information",
    200,
    None,
    lambda: {"black": flat(64, 64), "white": encoded(Image.new("RGB", (64, 64), "white"), "JPEG")},
)
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
files(
    96,
    "colour profiles",
    200,
    None,
    lambda: {
        "sRGB": encoded(PHOTO, "JPEG", icc_profile=SRGB),
        "2 MB": encoded(PHOTO, "JPEG", icc_profile=SRGB + bytes(2_000_000)),
    },
)
