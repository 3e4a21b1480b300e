"""The pixels of a TIFF file, strip by strip or tile by tile.

OpenCV never sees the file. By itself, it gives wrong pixels without an error for 16 bits in planes, for 16 bits where 0
is white, and for gray with opacity; it refuses some tiles; and it allocates what a tag claims. Here it unpacks LZW and
PackBits, as one picture of gray values, and JPEG, as a JPEG file. Everything else is done by numpy and zlib.
"""

import struct
import sys
import zlib
from collections.abc import Iterator

import cv2
import numpy as np
from jaxtyping import Shaped, UInt8

from serving.contract.formats import tiff
from serving.contract.formats.block import Block
from serving.contract.formats.header import damaged
from serving.contract.formats.image_header import read_header
from serving.contract.formats.opencv import imdecode
from serving.contract.formats.tiff import TiffPage, check_blocks, read_page, unsupported

GROUP_PIXELS = 1 << 16
"""Pixels of a strip or tile that are given at once, in whole rows: arithmetic takes several times their memory."""
MAX_ODD_BLOCK = 2**24
"""The most bytes of a block of LZW or PackBits whose number is odd: OpenCV takes four times their memory."""

_HANDED_ON = struct.Struct("<4sI")
_START = b"\xff\xd8"
_ADOBE = b"\xff\xee\x00\x0eAdobe\x00\x64\x00\x00\x00\x00"
"""Segment of a JPEG whose last byte, to be added, is 1 for YCbCr and 0 for RGB."""


def tiff_blocks(data: bytes) -> Iterator[Block]:
    """Decode the first page of a file that `read_tiff` accepts.

    Raises ImageError: undecodable_image, unsupported_image_format; MemoryError.
    """
    page = read_page(data)
    check_blocks(page, len(data))
    (rows, columns), (down, across) = page.block, page.grid
    places = page.places
    for index in range(down * across):
        top, left = index // across * rows, index % across * columns
        inside, across_inside = min(rows, page.height - top), min(columns, page.width - left)
        stored = rows if page.tiled else inside
        blocks = [data[offset : offset + length] for offset, length in places[index :: down * across]]
        planes = [_unpacked(page, block, stored).reshape(stored, -1) for block in blocks]
        step = max(1, GROUP_PIXELS // columns)
        for first in range(0, inside, step):
            group = [_values(page, plane[first : min(first + step, inside)]) for plane in planes]
            values = np.concatenate(group, axis=2)[:, :across_inside] if len(group) > 1 else group[0][:, :across_inside]
            yield _block(page, values, top + first, left)


def _unpacked(page: TiffPage, block: bytes, rows: int) -> UInt8[np.ndarray, " _"]:
    """The bytes of as many rows."""
    size = rows * page.row_bytes
    if page.compression == tiff.NONE:
        raw = block[:size]
    elif page.compression in tiff.DEFLATES:
        try:
            raw = zlib.decompressobj().decompress(block, size)
        except zlib.error as error:
            raise damaged("a strip or tile cannot be unpacked") from error
    elif page.compression == tiff.JPEG:
        return _of_jpeg(page, block, rows)
    else:
        return _by_opencv(page, block, rows)
    if len(raw) < size:
        raise damaged("a strip or tile has fewer bytes than its rows")
    return np.frombuffer(raw, np.uint8)


def _by_opencv(page: TiffPage, block: bytes, rows: int) -> UInt8[np.ndarray, " _"]:
    """Unpack bytes as if they were gray values of 16 bits, which OpenCV copies; or of 8, which it expands to RGBA."""
    width, height, bits = page.row_bytes, rows, 16
    if width % 2 == 0:
        width //= 2
    elif height % 2 == 0:
        height //= 2
    else:
        bits = 8
        if width * height > MAX_ODD_BLOCK:
            raise unsupported(f"of strips or tiles of an odd number of bytes above {MAX_ODD_BLOCK // 2**20} MiB")
    entries = {
        tiff.WIDTH: width,
        tiff.HEIGHT: height,
        tiff.BITS: bits,
        tiff.COMPRESSION: page.compression,
        tiff.PHOTOMETRIC: tiff.BLACK_IS_ZERO,
        tiff.STRIP_OFFSETS: _HANDED_ON.size,
        tiff.SAMPLES: 1,
        tiff.ROWS: height,
        tiff.STRIP_BYTES: len(block),
    }
    even = block + b"\0" * (len(block) % 2)
    directory = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in sorted(entries.items()))
    file = _HANDED_ON.pack(b"II*\0", _HANDED_ON.size + len(even)) + even + struct.pack("<H", len(entries)) + directory
    gray = imdecode(file + bytes(4), cv2.IMREAD_UNCHANGED)
    if gray.shape != (height, width) or gray.itemsize * 8 != bits:
        raise damaged("a strip or tile cannot be unpacked")
    return (gray if sys.byteorder == "little" else gray.byteswap()).reshape(-1).view(np.uint8)


def _of_jpeg(page: TiffPage, block: bytes, rows: int) -> UInt8[np.ndarray, " _"]:
    """Decode a block as the JPEG file that it is when the tables of the page are put in."""
    if not block.startswith(_START):
        raise damaged("a strip or tile is no JPEG")
    tables = bytes(page.tags.get(tiff.JPEG_TABLES, ()))[2:-2]
    colours = _ADOBE + bytes([page.photometric == tiff.YCBCR]) if page.samples == 3 else b""
    file = _START + tables + colours + block[2:]
    header = read_header(file)
    same = (header.format, header.mode, header.width) == ("JPEG", "RGB" if colours else "L", page.block[1])
    if not same or not rows <= header.height <= page.block[0]:
        raise damaged("a strip or tile differs from what its tags state")
    return imdecode(file, cv2.IMREAD_COLOR_RGB if colours else cv2.IMREAD_GRAYSCALE)[:rows].reshape(-1)


def _values(page: TiffPage, raw: UInt8[np.ndarray, "rows row_bytes"]) -> Shaped[np.ndarray, "rows columns samples"]:
    """The values of some rows of a plane, in 8 or 16 bits; those of fewer bits are not scaled yet."""
    columns = page.block[1]
    if page.bits < 8:
        shifts = np.arange(8 - page.bits, -1, -page.bits, dtype=np.uint8)
        small = raw[:, :, np.newaxis] >> shifts & np.uint8(2**page.bits - 1)
        return small.reshape(len(raw), -1, 1)[:, :columns]
    values = raw if page.bits == 8 else raw.view(f"{page.order}u2").astype(np.uint16)
    values = values.reshape(len(raw), columns, -1)
    if page.first(tiff.PREDICTOR, 1) == 2 and page.compression != tiff.NONE:
        return np.cumsum(values, axis=1, dtype=values.dtype)  # differences from the left, which wrap around
    return values


def _block(page: TiffPage, values: Shaped[np.ndarray, "rows columns samples"], top: int, left: int) -> Block:
    if page.photometric == tiff.PALETTE:
        colours = page.tags[tiff.COLOURS]
        if len(colours) != 3 * 2**page.bits:
            raise damaged("its palette has too few or too many colours")
        table = np.array(colours, np.uint32).reshape(3, -1).T >> 8
        return Block(colour=table.astype(np.uint8)[values[:, :, 0]], top=top, left=left)
    count = values.shape[2] - (page.extra is not None)
    colour = values[:, :, :count]
    if page.bits < 8:
        colour = colour * np.uint8(255 // (2**page.bits - 1))
    if page.photometric == tiff.WHITE_IS_ZERO:
        colour = np.invert(colour)
    alpha = values[:, :, count:] if page.extra in (tiff.OPACITY, tiff.PREMULTIPLIED) else None
    if page.extra == tiff.PREMULTIPLIED and alpha is not None:  # it was on black: put on white
        colour, alpha = np.minimum(colour.astype(np.uint16) + 255 - alpha, 255).astype(np.uint8), None
    return Block(colour=colour, alpha=alpha, top=top, left=left)
