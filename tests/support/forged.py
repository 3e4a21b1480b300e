"""Image files that a user would not send: damaged, lying, enormous, or merely rare; each made here from nothing."""

import io
import struct
import zlib
from collections.abc import Iterator

import cv2
import numpy as np
from PIL import ExifTags, Image

RNG = np.random.default_rng(0)
PIXELS = cv2.resize(RNG.integers(0, 256, (6, 8, 3), dtype=np.uint8), (96, 72), interpolation=cv2.INTER_CUBIC)
PHOTO = Image.fromarray(PIXELS)
SIGNATURE = b"\x89PNG\r\n\x1a\n"
NO_PIXELS = Image.new("RGB", (1, 1))


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


JPEG, PNG, WEBP, BMP, TIFF, GIF = (encoded(PHOTO, kind) for kind in ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF"))
TIFF_OF_TWO_PAGES = encoded(PHOTO, "TIFF", save_all=True, append_images=[PHOTO])


def flat(width: int, height: int, mode: str = "RGB", kind: str = "PNG", **options: object) -> bytes:
    """A picture of one colour: as few bytes as its pixels allow."""
    return encoded(Image.new(mode, (width, height), 90 if mode in ("L", "I;16") else 0), kind, **options)


def chunk(kind: bytes, data: bytes, *, claims: int | None = None, crc: int | None = None) -> bytes:
    """A PNG chunk; `claims` is the length it says it has, `crc` a checksum that need not fit."""
    right = zlib.crc32(kind + data)
    return struct.pack(">I", len(data) if claims is None else claims) + kind + data + struct.pack(">I", crc or right)


def ihdr(width: int, height: int, depth: int = 8, color: int = 2, interlace: int = 0) -> bytes:
    return struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, interlace)


def png_that_claims(width: int, height: int, depth: int = 8, color: int = 2) -> bytes:
    """A header and no pixels."""
    return SIGNATURE + chunk(b"IHDR", ihdr(width, height, depth, color)) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


def png_with(*chunks: bytes, at: int = 33, of: bytes = PNG) -> bytes:
    """A sound PNG with chunks put in behind its header."""
    return of[:at] + b"".join(chunks) + of[at:]


def segment(marker: int, data: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, len(data) + 2) + data


def jpeg_with(*segments: bytes, of: bytes = JPEG) -> bytes:
    """A sound JPEG with segments put in at its beginning."""
    return of[:2] + b"".join(segments) + of[2:]


def jpeg_of_many_scans(side: int, scans: int) -> bytes:
    """A flat progressive JPEG that repeats its last scan: each is a few bytes, and a pass over the whole image."""
    data = encoded(Image.new("L", (side, side), 90), "JPEG", progressive=True)
    last, end = data.rfind(b"\xff\xda"), data.rfind(b"\xff\xd9")
    return data[:end] + data[last:end] * scans + data[end:]


def jpeg_with_a_marker_for_a_restart() -> bytes:
    """Broken entropy data: in place of a restart marker stands one that begins a frame."""
    data = encoded(PHOTO, "JPEG", restart_marker_blocks=4)
    at = data.index(b"\xff\xd2", data.index(b"\xff\xda"))
    return data[: at + 1] + b"\xc9" + data[at + 2 :]


def jpeg_without_tables() -> bytes:
    """Huffman tables renamed to comments: OpenCV would take tables of its own, meant for motion JPEG."""
    return JPEG.replace(b"\xff\xc4", b"\xff\xfe")


def zeroed(data: bytes, start: float, size: int) -> bytes:
    at = int(len(data) * start)
    return data[:at] + bytes(size) + data[at + size :]


def bits(*fields: tuple[int, int]) -> bytes:
    """(value, width) after each other, least significant bit first, as lossless WebP has them."""
    number = width = 0
    for value, size in fields:
        number |= value << width
        width += size
    return number.to_bytes(-(-width // 8), "little")


def webp_of_overflowing_codes() -> bytes:
    """Lossless WebP whose Huffman code lengths need more table than there may be (the kind of CVE-2023-4863).

    A normal code of 19 code-length codes, each of length 4: an incomplete tree that fills no table of its own.
    """
    header = [(0x2F, 8), (63, 14), (63, 14), (0, 1), (0, 3), (0, 1), (0, 1), (0, 1)]
    code = [(0, 1), (15, 4), *[(4, 3)] * 19, (0, 1), *[(5, 4)] * 300]
    body = bits(*header, *code) + RNG.bytes(400)
    return riff(b"VP8L", body)


def riff(kind: bytes, body: bytes) -> bytes:
    body += b"\0" * (len(body) % 2)
    chunk_ = kind + struct.pack("<I", len(body)) + body
    return b"RIFF" + struct.pack("<I", len(chunk_) + 4) + b"WEBP" + chunk_


def frames(count: int) -> list[Image.Image]:
    return [Image.new("RGB", (16, 16), (number * 37 % 256, number * 11 % 256, 7)) for number in range(count)]


def animated(kind: str, count: int) -> bytes:
    first, *rest = frames(count)
    return encoded(first, kind, save_all=True, append_images=rest, **({"method": 0} if kind == "WEBP" else {}))


def turned(orientation: int) -> bytes:
    """PHOTO with an EXIF orientation, its pixels stored so that they stand upright once it is applied."""
    inverse = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # Image.Transpose
    stored = PHOTO if orientation == 1 else PHOTO.transpose(Image.Transpose(inverse[orientation]))
    return encoded(stored, "PNG", exif=exif(orientation))


def exif(orientation: int) -> Image.Exif:
    block = Image.Exif()
    block[ExifTags.Base.Orientation] = orientation
    return block


def exif_loop() -> bytes:
    """A directory without the tag, whose next directory is itself and whose EXIF pointer points to it, too."""
    tiff = b"II*\0" + struct.pack("<IHHHIII", 8, 1, 0x8769, 4, 1, 8, 8)
    return jpeg_with(segment(0xE1, b"Exif\0\0" + tiff))


PNGSUITE = {
    # What each of the fourteen damaged files in PngSuite does to a sound one; the first six have no PNG signature.
    "xs1": b"\x09" + PNG[1:],
    "xs2": b"\x89QNG" + PNG[4:],
    "xs4": b"\x89PNg" + PNG[4:],
    "xs7": PNG[:6] + b" " + PNG[7:],
    "xcr": PNG.replace(b"\n", b"\r\n"),
    "xlf": PNG.replace(b"\r", b"\n\n"),
    "xhd": SIGNATURE + chunk(b"IHDR", ihdr(96, 72), crc=1) + PNG[33:],
    "xc1": SIGNATURE + chunk(b"IHDR", ihdr(96, 72, color=1)) + PNG[33:],
    "xc9": SIGNATURE + chunk(b"IHDR", ihdr(96, 72, color=9)) + PNG[33:],
    "xd0": SIGNATURE + chunk(b"IHDR", ihdr(96, 72, depth=0)) + PNG[33:],
    "xd3": SIGNATURE + chunk(b"IHDR", ihdr(96, 72, depth=3)) + PNG[33:],
    "xd9": SIGNATURE + chunk(b"IHDR", ihdr(96, 72, depth=99)) + PNG[33:],
    "xdt": PNG[:33] + chunk(b"IEND", b""),
    "xcs": PNG[:33] + chunk(b"IDAT", zlib.compress(bytes(72 * 289)), crc=1) + chunk(b"IEND", b""),
}
PNG_CHUNKS = (
    b"bKGD cHRM eXIf gAMA hIST iCCP iTXt juNK oFFs pCAL pHYs sBIT sCAL sPLT sRGB sTER tEXt tIME tRNS zTXt".split()
)


def huge_chunks() -> Iterator[tuple[str, bytes]]:
    """Each kind of chunk at 2 MB of zeros, and one that claims 2 GB and has none."""
    for kind in PNG_CHUNKS:
        yield f"{kind.decode()} of 2 MB", png_with(chunk(kind, bytes(2_000_000)))
    yield "claims 2 GB", png_with(chunk(b"tEXt", b"a\0", claims=2**31 - 1))
    yield "IDAT claims 2 GB", PNG[:33] + chunk(b"IDAT", zlib.compress(bytes(72 * 289)), claims=2**31 - 1)


# By format: the beginning of a file of it, and enough of the rest for a library to take it for one.
OTHERS = {
    "text": b"just text, and nothing else\n" * 9,
    "html": b"<!doctype html><script>alert(1)</script>",
    "json": b'{"image": "/etc/hostname"}',
    "svg": b'<?xml version="1.0"?><!DOCTYPE svg [<!ENTITY x SYSTEM "file:///etc/hostname">]><svg>&x;</svg>',
    "pdf": b"%PDF-1.7\n1 0 obj\n<<>>\nendobj\n",
    "eps": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 64\n%%EndComments\n",
    "ico": encoded(PHOTO, "ICO"),
    "tga": encoded(PHOTO, "TGA"),
    "ppm": encoded(PHOTO, "PPM"),
    "pam": b"P7\nWIDTH 8\nHEIGHT 8\nDEPTH 3\nMAXVAL 255\nTUPLTYPE RGB\nENDHDR\n" + bytes(192),
    "pfm": b"PF\n8 8\n-1.0\n" + bytes(768),
    "hdr": b"#?RADIANCE\nFORMAT=32-bit_rle_rgbe\n\n-Y 8 +X 8\n" + bytes(256),
    "sun raster": struct.pack(">8I", 0x59A66A95, 8, 8, 24, 192, 1, 0, 0) + bytes(192),
    "jpeg 2000": encoded(PHOTO, "JPEG2000"),
    "avif": b"\0\0\0\x20ftypavif\0\0\0\0avifmif1miafMA1B" + bytes(200),
    "heic": b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(200),
    "dicom": bytes(128) + b"DICM" + bytes(200),
    "zip": b"PK\x03\x04" + bytes(60),
    "gzip": zlib.compress(b"x", wbits=31),
    "tar": b"a.txt".ljust(257, b"\0") + b"ustar\x0000" + bytes(247),
    "npy": b"\x93NUMPY\x01\0v\0{'descr': '|u1', 'fortran_order': False, 'shape': (8, 8, 3), }".ljust(128) + bytes(192),
    "pickle": b"\x80\x04\x95\x0b\0\0\0\0\0\0\0\x8c\x07example\x94.",
    "elf": b"\x7fELF\x02\x01\x01" + bytes(60),
    "junk before a jpeg": b"junk" + JPEG,
    "wave": b"RIFF\x24\0\0\0WAVEfmt " + bytes(28),
}


def claimed_apng(count: int) -> bytes:
    return png_with(chunk(b"acTL", struct.pack(">II", count, 0)))


def claimed_webp(count: int) -> bytes:
    """An animated WebP of `count` equal frames of a few bytes each."""
    still = flat(16, 16, kind="WEBP", lossless=True)[12:]
    frame = struct.pack("<6I", 0, 0, 0, 0, 0, 0)[:6] + bytes([15, 0, 0, 15, 0, 0, 10, 0, 0, 0]) + still
    anmf = b"ANMF" + struct.pack("<I", len(frame)) + frame
    body = b"VP8X" + struct.pack("<IIHBHB", 10, 2, 15, 0, 15, 0) + b"ANIM" + struct.pack("<IIH", 6, 0, 0) + anmf * count
    return b"RIFF" + struct.pack("<I", len(body) + 4) + b"WEBP" + body
