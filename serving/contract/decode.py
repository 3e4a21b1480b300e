"""From an encoded image to the pixels that the model takes.

Training, the proof of an exported file and the service use the same function, so that they see the same pixels. Pixels
are uint8 up to the input of the model.
"""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal, NewType

import cv2
import numpy as np
from jaxtyping import UInt8, UInt16

from serving.contract.formats.block import Block
from serving.contract.formats.depth import SHIFTED, Depth
from serving.contract.formats.gif import gif_blocks
from serving.contract.formats.image_header import MIN_SIDE, Header, ImageError, read_header
from serving.contract.formats.opencv import imdecode
from serving.contract.formats.tiff_blocks import tiff_blocks

MAX_SIDE = 65_500  # JPEG_MAX_DIMENSION of libjpeg; the limit of OpenCV is far above it
MAX_BYTES = 10 * 2**20
"""Limit of a file that a client sends, unless the operator sets another one."""
LOCAL_BYTES = 512 * 2**20
"""Limit of a file on a disk, for training: 40 megapixels of four values of 16 bits take 305 MiB uncompressed."""
MAX_PIXELS = 40_000_000
STRIP_PIXELS = 1 << 16
NEUTRAL = 114
"""Near the mean of photographs, so that ImageNet's mean and deviation make it nearly 0."""

Channels = Literal[1, 3]
Interpolation = Literal["area", "linear"]
Fit = Literal["stretch", "pad", "crop"]
Window = tuple[float, float, float, float]
"""Top, bottom, left and right as shares of an image's height and width."""
Digest = NewType("Digest", str)

INTERPOLATION_FLAGS: dict[Interpolation, int] = {"area": cv2.INTER_AREA, "linear": cv2.INTER_LINEAR}
# By EXIF orientation (TIFF 6.0, tag 274): the operation that makes the stored pixels upright. 1 needs none.
TURNS: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    2: lambda pixels: cv2.flip(pixels, 1),
    3: lambda pixels: cv2.rotate(pixels, cv2.ROTATE_180),
    4: lambda pixels: cv2.flip(pixels, 0),
    5: lambda pixels: cv2.flip(cv2.rotate(pixels, cv2.ROTATE_90_CLOCKWISE), 1),
    6: lambda pixels: cv2.rotate(pixels, cv2.ROTATE_90_CLOCKWISE),
    7: lambda pixels: cv2.flip(cv2.rotate(pixels, cv2.ROTATE_90_COUNTERCLOCKWISE), 1),
    8: lambda pixels: cv2.rotate(pixels, cv2.ROTATE_90_COUNTERCLOCKWISE),
}

Decoded = UInt8[np.ndarray, "decoded_height decoded_width channels"]
Pixels = UInt8[np.ndarray, "height width channels"]


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """The input of the graph: its size in pixels, its channels, and how an image is brought to this size."""

    height: int
    width: int
    channels: Channels
    interpolation: Interpolation
    fit: Fit = "stretch"
    """stretch: both sides are resized, whatever the proportions; pad: the whole image is resized and centred on a
    ground of `fill`; crop: the image is resized to cover the input, and its centre taken. Cards of version 1 have none:
    they stretch."""
    fill: int = NEUTRAL
    """Value of every channel of the ground."""
    depth: Depth = SHIFTED
    """How values of more than 8 bits become 8. Cards without it shift them."""

    def __call__(self, data: bytes, *, max_bytes: int = LOCAL_BYTES, max_pixels: int = MAX_PIXELS) -> Pixels:
        """Decode and resize an encoded image to uint8 `[height, width, channels]`. Raises what `decode` raises."""
        return self.fitted(self.decoded(data, max_bytes=max_bytes, max_pixels=max_pixels), max_pixels=max_pixels)

    def decoded(self, data: bytes, *, max_bytes: int = LOCAL_BYTES, max_pixels: int = MAX_PIXELS) -> Decoded:
        """Decode an image as `decode` does, to the channels and by the depth of the model."""
        return decode(data, self.channels, max_bytes=max_bytes, max_pixels=max_pixels, depth=self.depth)

    def fitted(self, pixels: Decoded, *, max_pixels: int = MAX_PIXELS) -> Pixels:
        """Bring decoded pixels to uint8 `[height, width, channels]`, exactly as Albumentations does.

        That is `A.Resize`; `A.LongestMaxSize` and `A.PadIfNeeded`; `A.SmallestMaxSize` and `A.CenterCrop`. Raises
        ImageError (image_too_large) if cropping would cut off more than `max_pixels`: a line of 8 x 65,500 px, resized
        to cover the input, would take a gigabyte.
        """
        height, width = self.resized_size(*pixels.shape[:2])
        if height * width - self.height * self.width > max_pixels:
            size = (
                f"the image is {pixels.shape[1]} x {pixels.shape[0]} px, resized for the model {width:,} x {height:,}"
            )
            raise ImageError(
                "image_too_large", f"{size}; at most {max_pixels / 1e6:g} megapixels may be cropped from it"
            )
        resized = fit(pixels, height, width, self.interpolation)
        if (height, width) == (self.height, self.width):
            return resized
        if self.fit == "crop":
            top, left = (height - self.height) // 2, (width - self.width) // 2
            return np.ascontiguousarray(resized[top : top + self.height, left : left + self.width])
        top, left = (self.height - height) // 2, (self.width - width) // 2
        ground = np.full((self.height, self.width, pixels.shape[2]), self.fill, np.uint8)
        ground[top : top + height, left : left + width] = resized
        return ground

    def window(self, height: int, width: int) -> Window:
        """Where the input lies in an image of this height and width; with `pad` it reaches beyond the image."""
        resized_height, resized_width = self.resized_size(height, width)
        top, left = (resized_height - self.height) / 2, (resized_width - self.width) / 2
        return (
            top / resized_height,
            (top + self.height) / resized_height,
            left / resized_width,
            (left + self.width) / resized_width,
        )

    def resized_size(self, height: int, width: int) -> tuple[int, int]:
        """Height and width to which an image of this height and width is resized, before it is padded or cropped."""
        if self.fit == "stretch":
            return self.height, self.width
        choose = min if self.fit == "pad" else max
        scale = choose(self.height / height, self.width / width)
        return max(1, round(height * scale)), max(1, round(width * scale))


def decode(
    data: bytes,
    channels: Channels = 3,
    *,
    max_bytes: int = LOCAL_BYTES,
    max_pixels: int = MAX_PIXELS,
    depth: Depth = SHIFTED,
) -> Decoded:
    """Decode an image to upright uint8 pixels `[height, width, channels]`, RGB (3 channels) or luma (1 channel).

    The bytes decide the format, not the name of a file. EXIF orientation is applied. Alpha is composited on white. 16
    bits become 8 by `depth`. CMYK is converted to RGB. ICC profiles are ignored. A JPEG or TIFF with several pictures
    gives the first one. The limits are checked with the header, before the pixels are decoded, so a small file that
    claims a huge image takes no memory.

    Raises ImageError: empty_image, payload_too_large, unsupported_image_format, undecodable_image, animated_image,
    image_too_small, image_too_large.
    """
    header = checked_header(data, max_bytes=max_bytes, max_pixels=max_pixels)
    return decode_checked(data, header, channels, depth)


def checked_header(data: bytes, *, max_bytes: int = LOCAL_BYTES, max_pixels: int = MAX_PIXELS) -> Header:
    """Read the header of an image that may be decoded. Raises ImageError as `decode` does."""
    if not data:
        raise ImageError("empty_image", "the file is empty")
    if len(data) > max_bytes:
        raise ImageError("payload_too_large", f"the file has {len(data):,} bytes; at most {max_bytes:,} are accepted")
    header = read_header(data)
    if header.frames > 1:
        raise ImageError("animated_image", "the file is an animation; send one picture")
    _check_size(header.width, header.height, max_pixels)
    return header


def decode_checked(data: bytes, header: Header, channels: Channels = 3, depth: Depth = SHIFTED) -> Decoded:
    """Decode an image whose header `checked_header` has returned. Raises ImageError as `decode` does."""
    return as_channels(_upright(_rgb(data, header, depth), header), channels)


def stored_values(data: bytes, header: Header) -> UInt16[np.ndarray, "height width samples"]:
    """The values of an image of more than 8 bits as they are stored, upright: gray or RGB, and opacity if there is any.

    `header` is what `checked_header` has returned. Raises ImageError as `decode` does.
    """
    values: np.ndarray | None = None
    for block in _BLOCKS.get(header.format, _unchanged)(data, header):
        samples = block.colour if block.alpha is None else np.concatenate([block.colour, block.alpha], axis=2)
        rows, columns, count = samples.shape
        if values is None:
            values = np.empty((header.height, header.width, count), np.uint16)
        values[block.top : block.top + rows, block.left : block.left + columns] = samples
    assert values is not None
    return _upright(values, header)


def _upright(pixels: np.ndarray, header: Header) -> np.ndarray:
    turn = TURNS.get(header.orientation)
    return pixels if turn is None else np.atleast_3d(turn(pixels))


def as_channels(pixels: UInt8[np.ndarray, "..."], channels: Channels) -> Decoded:
    """Convert uint8 pixels `[height, width]` or `[height, width, 1 or 3]` to RGB (3 channels) or luma (1 channel)."""
    pixels = np.atleast_3d(pixels)
    if pixels.shape[2] == channels:
        return pixels
    if channels == 3:
        return cv2.cvtColor(pixels, cv2.COLOR_GRAY2RGB)
    return cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)[:, :, np.newaxis]


def fit(pixels: Decoded, height: int, width: int, interpolation: Interpolation) -> Pixels:
    """Resize uint8 pixels to `[height, width, channels]`, without keeping the proportions, exactly as `A.Resize`."""
    if pixels.shape[:2] == (height, width):
        return pixels
    resized = cv2.resize(pixels, (width, height), interpolation=INTERPOLATION_FLAGS[interpolation])
    return resized.reshape(height, width, pixels.shape[2])


def identifying_values(
    data: bytes, header: Header, pixels: Decoded
) -> UInt8[np.ndarray, "..."] | UInt16[np.ndarray, "..."]:
    """What tells an image from others: its RGB pixels, of more than 8 bits its `stored_values`.

    `header` is what `checked_header` has returned, `pixels` what `decode_checked`. Raises ImageError as `decode` does.
    """
    return pixels if header.bits <= 8 else stored_values(data, header)


def pixel_digest(pixels: UInt8[np.ndarray, "..."] | UInt16[np.ndarray, "..."]) -> Digest:
    """SHA-256 of shape and values, of 16 bits by their two bytes. Images with equal digests have equal pixels."""
    values = np.ascontiguousarray(pixels).view(np.uint8)
    return Digest(hashlib.sha256(repr(values.shape).encode() + values.tobytes()).hexdigest())


def _check_size(width: int, height: int, max_pixels: int) -> None:
    size = f"the image is {width} x {height} px"
    if min(width, height) < MIN_SIDE:
        raise ImageError("image_too_small", f"{size}; the smallest side accepted is {MIN_SIDE} px")
    if max(width, height) > MAX_SIDE:
        raise ImageError("image_too_large", f"{size}; the longest side accepted is {MAX_SIDE:,} px")
    if width * height > max_pixels:
        raise ImageError("image_too_large", f"{size}; at most {max_pixels / 1e6:g} megapixels are accepted")


def _rgb(data: bytes, header: Header, depth: Depth) -> Decoded:
    """The pixels as stored, RGB with 8 bits."""
    shifted = header.bits == 8 or depth == SHIFTED
    if header.format not in _BLOCKS and not header.transparent and shifted:
        pixels = imdecode(data, cv2.IMREAD_COLOR_RGB)
        _check_decoded(pixels, header)
        return pixels
    rgb = np.empty((header.height, header.width, 3), np.uint8)
    for block in _BLOCKS.get(header.format, _unchanged)(data, header):
        rows, columns = block.colour.shape[:2]
        place = rgb[block.top : block.top + rows, block.left : block.left + columns]
        step = max(1, STRIP_PIXELS // columns)  # the arithmetic takes several times the memory of its pixels
        for top in range(0, rows, step):
            strip = slice(top, top + step)
            alpha = None if block.alpha is None else block.alpha[strip]
            place[strip] = _on_white(block.colour[strip], alpha, header.transparent_gray, depth)
    return rgb


def _unchanged(data: bytes, header: Header) -> Iterator[Block]:
    """All of an image that OpenCV decodes unchanged: gray, BGR or BGRA."""
    pixels = imdecode(data, cv2.IMREAD_UNCHANGED)
    _check_decoded(pixels, header)
    pixels = np.atleast_3d(pixels)
    yield Block(colour=pixels[:, :, 2::-1], alpha=pixels[:, :, 3:] if pixels.shape[2] == 4 else None)


def _check_decoded(pixels: np.ndarray, header: Header) -> None:
    if pixels.shape[:2] != (header.height, header.width):
        raise ImageError("undecodable_image", "the file is damaged: its header and its pixels differ in size")


_BLOCKS: dict[str, Callable[[bytes, Header], Iterator[Block]]] = {
    "TIFF": lambda data, _: tiff_blocks(data),
    "GIF": lambda data, _: gif_blocks(data),
}
"""Formats whose files OpenCV does not decode as a whole."""


def _on_white(colour: np.ndarray, alpha: np.ndarray | None, transparent_gray: int | None, depth: Depth) -> np.ndarray:
    """Values of 8 or 16 bits, gray or RGB, as 8 bits on white."""
    shown = _of_8_bits(colour, depth)
    if transparent_gray is not None:
        shown = np.where(colour == transparent_gray, np.uint8(255), shown)
    if alpha is None:
        return shown
    opacity = _of_8_bits(alpha, SHIFTED).astype(np.uint16)
    mixed = (shown * opacity + 255 * (255 - opacity) + 127) // 255
    return mixed.astype(np.uint8)


def _of_8_bits(values: np.ndarray, depth: Depth) -> np.ndarray:
    return values if values.dtype == np.uint8 else depth(values)
