"""TIFF files of every layout, written here from nothing: Pillow writes few of them."""

import struct
import zlib
from dataclasses import dataclass, field

import numpy as np

TYPES = {1: "B", 3: "H", 4: "I", 7: "B"}
Tags = dict[int, tuple[int, list[int]]]
"""Type and values by number of the tag."""


@dataclass(frozen=True, kw_only=True)
class Layout:
    """How the pixels of a file lie in it."""

    order: str = "<"
    tile: tuple[int, int] | None = None
    rows: int | None = None
    """Of a strip; None: all."""
    planar: bool = False
    compress: bool = False
    """By Deflate."""
    tags: Tags = field(default_factory=dict)
    """Put in, or in place of those that the pixels need."""


def tiff(pixels: np.ndarray, layout: Layout = Layout()) -> bytes:
    """Encode uint8 or uint16 `[height, width]` or `[height, width, samples]`; two or four samples have opacity."""
    values = np.atleast_3d(pixels)
    height, width, samples = values.shape
    values = values.astype(values.dtype.newbyteorder("<" if layout.order == "<" else ">"))
    planes = [values[:, :, [sample]] for sample in range(samples)] if layout.planar else [values]
    blocks = [block for plane in planes for block in _blocks(plane, layout)]
    stored = [zlib.compress(block) if layout.compress else block for block in blocks]
    ends = np.cumsum([8, *map(len, stored)]).tolist()
    tags: Tags = {
        256: (3, [width]),
        257: (3, [height]),
        258: (3, [values.itemsize * 8] * samples),
        259: (3, [8 if layout.compress else 1]),
        262: (3, [2 if samples > 2 else 1]),
        277: (3, [samples]),
        284: (3, [2 if layout.planar else 1]),
    }
    offsets, lengths = (4, ends[:-1]), (4, [len(block) for block in stored])
    if samples in (2, 4):
        tags[338] = (3, [2])
    if layout.tile:
        tags |= {322: (3, [layout.tile[1]]), 323: (3, [layout.tile[0]]), 324: offsets, 325: lengths}
    else:
        tags |= {273: offsets, 278: (3, [layout.rows or height]), 279: lengths}
    return with_directory(b"".join(stored), tags | layout.tags, layout.order)


def with_directory(body: bytes, tags: Tags, order: str = "<") -> bytes:
    """A file of `body`, which begins at byte 8, and one directory of tags behind it."""
    body += b"\0" * (len(body) % 2)
    at = 8 + len(body)
    entries, values = b"", b""
    for tag, (kind, numbers) in sorted(tags.items()):
        raw = struct.pack(f"{order}{len(numbers)}{TYPES[kind]}", *numbers)
        place = raw.ljust(4, b"\0")
        if len(raw) > 4:
            place = struct.pack(f"{order}I", at + 2 + 12 * len(tags) + 4 + len(values))
            values += raw + b"\0" * (len(raw) % 2)
        entries += struct.pack(f"{order}HHI", tag, kind, len(numbers)) + place
    magic = {"<": b"II*\0", ">": b"MM\0*"}[order]
    count, last = struct.pack(f"{order}H", len(tags)), bytes(4)
    return magic + struct.pack(f"{order}I", at) + body + count + entries + last + values


def _blocks(plane: np.ndarray, layout: Layout) -> list[bytes]:
    height, width, samples = plane.shape
    if not layout.tile:
        rows = layout.rows or height
        return [plane[top : top + rows].tobytes() for top in range(0, height, rows)]
    down, across = layout.tile
    blocks = []
    for top in range(0, height, down):
        for left in range(0, width, across):
            block = np.zeros((down, across, samples), plane.dtype)
            inside = plane[top : top + down, left : left + across]
            block[: inside.shape[0], : inside.shape[1]] = inside
            blocks.append(block.tobytes())
    return blocks
