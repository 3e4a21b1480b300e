"""GIF of one frame (GIF89a specification).

OpenCV only unpacks the codes of the frame. It is given a GIF with a colour table of grays, so that its pixels are the
indices. Colours, the transparent index and the place of the frame are applied here.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass

import cv2
import numpy as np

from serving.contract.formats.block import Block
from serving.contract.formats.header import Header, damaged
from serving.contract.formats.opencv import imdecode

MAX_BLOCKS = 100_000
"""The most blocks of a file. Each holds at most 255 bytes, so a file of 10 MB has 41,000."""

GROUP_PIXELS = 1 << 16
"""Rows of as many pixels are given at a time, because their colours take three times the memory of their indices."""
WHITE = np.uint8(255)

_FRAME, _EXTENSION, _TRAILER = 0x2C, 0x21, 0x3B
_GRAPHIC_CONTROL = b"\x21\xf9\x04"
_HAS_TABLE, _INTERLACED = 0x80, 0x40
_CANVAS_AT, _TABLE_AT, _DESCRIPTOR = 6, 13, 10
_GRAYS = bytes(value for value in range(256) for _ in range(3))


@dataclass(frozen=True, kw_only=True)
class Frame:
    """The first frame. Sizes and places are in pixels."""

    left: int
    top: int
    width: int
    height: int
    interlaced: bool
    table: bytes
    """Red, green and blue of each index."""
    transparent_index: int | None
    codes: bytes
    """The size of the first code, and the blocks of codes."""


def read_gif(data: bytes) -> Header:
    """Read the header; frames are counted up to two. Raises ImageError, struct.error, IndexError."""
    width, height = struct.unpack_from("<HH", data, _CANVAS_AT)
    frames = list(_frames(data))
    if not frames:
        raise damaged("it holds no picture")
    frame = frames[0]
    covers = (frame.left, frame.top, frame.width, frame.height) == (0, 0, width, height)
    return Header(
        format="GIF",
        height=height,
        width=width,
        mode="P",
        frames=len(frames),
        transparent=frame.transparent_index is not None or not covers,
    )


def gif_blocks(data: bytes) -> Iterator[Block]:
    """Decode the first frame of a file that `read_gif` accepts. What it does not cover is transparent.

    Raises ImageError: undecodable_image; MemoryError.
    """
    width, height = struct.unpack_from("<HH", data, _CANVAS_AT)
    frame = next(_frames(data))
    if frame.left + frame.width > width or frame.top + frame.height > height or not frame.width or not frame.height:
        raise damaged("its frame is empty or reaches beyond the picture")
    indices = imdecode(_of_grays(frame), cv2.IMREAD_GRAYSCALE)
    if indices.shape != (frame.height, frame.width):
        raise damaged("its header and its pixels differ in size")
    table = np.zeros((256, 3), np.uint8)
    table[: len(frame.table) // 3] = np.frombuffer(frame.table, np.uint8).reshape(-1, 3)
    opacity = np.full((256, 1), 255, np.uint8)
    if frame.transparent_index is not None:
        opacity[frame.transparent_index] = 0
    if (frame.width, frame.height) != (width, height):
        yield Block(colour=np.broadcast_to(WHITE, (height, width, 1)))
    step = max(1, GROUP_PIXELS // frame.width)
    for top in range(0, frame.height, step):
        group = indices[top : top + step]
        yield Block(colour=table[group], alpha=opacity[group], top=frame.top + top, left=frame.left)


def _frames(data: bytes) -> Iterator[Frame]:
    """The first frame and, where there are more, the second."""
    at, common = _table(data, _TABLE_AT, data[_DESCRIPTOR])
    transparent_index = None
    blocks = frames = 0
    while frames < 2 and data[at] != _TRAILER:
        start, kind = at, data[at]
        if kind == _FRAME:
            left, top, width, height, flags = struct.unpack_from("<4HB", data, at + 1)
            at, local_table = _table(data, at + 10, flags)
            codes_at = at
            at += 1
        elif kind == _EXTENSION:
            at += 2
        else:
            raise damaged("it has bytes between its blocks")
        blocks += 1
        while length := data[at]:
            at += 1 + length
            blocks += 1
            if blocks > MAX_BLOCKS:
                break
        at += 1
        if blocks > MAX_BLOCKS:
            raise damaged(f"it has more than {MAX_BLOCKS:,} blocks")
        if data.startswith(_GRAPHIC_CONTROL, start):
            transparent_index = data[start + 6] if data[start + 3] & 1 else None
        elif kind == _FRAME:
            frames += 1
            yield Frame(
                left=left,
                top=top,
                width=width,
                height=height,
                interlaced=bool(flags & _INTERLACED),
                table=local_table or common,
                transparent_index=transparent_index,
                codes=data[codes_at:at],
            )


def _table(data: bytes, at: int, flags: int) -> tuple[int, bytes]:
    """Where a colour table ends, and the table; it is empty where the flags state none."""
    end = at + (3 * 2 ** ((flags & 7) + 1) if flags & _HAS_TABLE else 0)
    return end, data[at:end]


def _of_grays(frame: Frame) -> bytes:
    screen = struct.pack("<6sHHBBB", b"GIF89a", frame.width, frame.height, 0xF7, 0, 0)
    interlaced = _INTERLACED if frame.interlaced else 0
    descriptor = struct.pack("<B4HB", _FRAME, 0, 0, frame.width, frame.height, interlaced)
    return screen + _GRAYS + descriptor + frame.codes + bytes([_TRAILER])
