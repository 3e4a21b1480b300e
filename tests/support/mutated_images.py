"""Image files changed at random.

`python -m tests.support.mutated_images` decodes all of them, in a process of its own so that a crash is noticed, and
prints for each file as JSON: its name, the mutants refused, the longest seconds of CPU, and MiB by which memory grew.
"""

import json
import random
import resource
import time

import cv2
import numpy as np
from PIL import Image

from serving.contract.decode import decode
from serving.contract.formats.image_header import ImageError
from tests.support.forged import chunk, encoded
from tests.support.peak import forget_peak, peak
from tests.support.pictures import ALPHA, RGB, RGBA, SMOOTH
from tests.support.tiff import Layout, tiff

DEEP = np.dstack([SMOOTH, ALPHA]).astype(np.uint16) * 257
JPEG, PNG = (encoded(RGB, kind) for kind in ("JPEG", "PNG"))
FUZZED = {
    "JPEG": JPEG,
    "progressive JPEG": encoded(RGB, "JPEG", progressive=True, exif=Image.Exif()),
    "JPEG of restarts": encoded(RGB, "JPEG", restart_marker_blocks=2),
    "CMYK JPEG": encoded(RGB.convert("CMYK"), "JPEG"),
    "PNG": PNG,
    "palette PNG": encoded(RGB.quantize(16), "PNG", transparency=3),
    "PNG of 16 bits": bytes(cv2.imencode(".png", DEEP)[1]),
    "WebP": encoded(RGB, "WEBP"),
    "lossless WebP": encoded(RGBA, "WEBP", lossless=True),
    "WebP with alpha": encoded(RGBA, "WEBP", exif=b"Exif\0\0II*\0\x08\0\0\0\0\0"),
    "BMP": encoded(RGB, "BMP"),
    "palette BMP": encoded(RGB.quantize(16), "BMP"),
    "TIFF": encoded(RGB, "TIFF"),
    "TIFF of LZW": encoded(RGBA, "TIFF", compression="tiff_lzw", tiffinfo={317: 2}),
    "TIFF of PackBits": encoded(RGB.quantize(16), "TIFF", compression="packbits", strip_size=300),
    "TIFF of JPEG": encoded(RGB, "TIFF", compression="jpeg"),
    "TIFF of planes of tiles": tiff(DEEP, Layout(planar=True, tile=(16, 16), compress=True, order=">")),
    "GIF": encoded(RGB, "GIF", transparency=3),
    "interlaced GIF": encoded(RGB.quantize(200), "GIF", interlace=1, comment=b"a comment"),
}
MUTANTS = 600
"""Of each file: 11,400 in all."""


def mutant(data: bytes, other: bytes, rng: random.Random) -> bytes:
    """Bits flipped, bytes set, a length or size exaggerated, a piece cut out, doubled, or of another file."""
    changed = bytearray(data)
    for _ in range(rng.choice([1, 1, 2, 4, 16])):
        at = rng.randrange(min(len(changed), 64) if rng.random() < 0.4 else len(changed))
        length = rng.randrange(1, 200)
        match rng.randrange(7):
            case 0:
                changed[at] ^= 1 << rng.randrange(8)
            case 1:
                changed[at] = rng.choice([0, 1, 0x7F, 0x80, 0xFE, 0xFF])
            case 2:
                changed[at : at + 4] = rng.choice([b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", bytes(4), b"\0\0\xff\xff"])
            case 3:
                del changed[at : at + length]
            case 4:
                changed[at:at] = changed[at : at + length]
            case 5:
                source = rng.randrange(len(other))
                changed[at : at + length] = other[source : source + length]
            case _:
                changed = changed[: max(at, 12)]
        if len(changed) < 4:
            break
    if data.startswith(PNG[:8]) and rng.random() < 0.7:
        changed = bytearray(with_right_checksums(bytes(changed)))
    return bytes(changed)


def with_right_checksums(png: bytes) -> bytes:
    """Without them every mutant of a PNG would be refused for its checksums alone."""
    at, mended = 8, png[:8]
    while at + 12 <= len(png):
        length = int.from_bytes(png[at : at + 4])
        if at + 12 + length > len(png):
            break
        mended += chunk(png[at + 4 : at + 8], png[at + 8 : at + 8 + length])
        at += 12 + length
    return mended + png[at:]


def _decode_all() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (6 << 30, 6 << 30))
    others = list(FUZZED.values())
    for name, data in FUZZED.items():
        rng = random.Random(name)
        refused, slowest_s = 0, 0.0
        before = forget_peak()
        for _ in range(MUTANTS):
            changed = mutant(data, rng.choice(others), rng)
            start = time.process_time()
            try:
                pixels = decode(changed)
            except ImageError:
                refused += 1
            else:
                assert pixels.dtype == np.uint8, pixels.dtype
                assert pixels.ndim == 3, pixels.shape
                assert pixels.shape[2] == 3, pixels.shape
            slowest_s = max(slowest_s, time.process_time() - start)
        print(json.dumps([name, refused, slowest_s, peak() - before]))


if __name__ == "__main__":
    _decode_all()
