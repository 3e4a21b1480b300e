"""From an encoded image to the pixels that the model takes.

Training, the proof of an exported file and the service use the same function, so that they see the same pixels. Pixels
are uint8 up to the input of the model.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NewType

import cv2
import numpy as np
from jaxtyping import UInt8

from serving.contract.image_header import MIN_SIDE, Header, ImageError, read_header

MAX_SIDE = 65_500  # JPEG_MAX_DIMENSION of libjpeg; the limit of OpenCV is far above it
MAX_BYTES = 10 * 2**20
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

    def __call__(self, data: bytes, *, max_bytes: int = MAX_BYTES, max_pixels: int = MAX_PIXELS) -> Pixels:
        """Decode and resize an encoded image to uint8 `[height, width, channels]`. Raises what `decode` raises."""
        return self.fitted(decode(data, self.channels, max_bytes=max_bytes, max_pixels=max_pixels))

    def fitted(self, pixels: Decoded) -> Pixels:
        """Bring decoded pixels to uint8 `[height, width, channels]`, exactly as Albumentations does.

        That is `A.Resize`; `A.LongestMaxSize` and `A.PadIfNeeded`; `A.SmallestMaxSize` and `A.CenterCrop`.
        """
        height, width = self.resized(*pixels.shape[:2])
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
        resized_height, resized_width = self.resized(height, width)
        top, left = (resized_height - self.height) / 2, (resized_width - self.width) / 2
        return (
            top / resized_height,
            (top + self.height) / resized_height,
            left / resized_width,
            (left + self.width) / resized_width,
        )

    def resized(self, height: int, width: int) -> tuple[int, int]:
        """Height and width to which an image of this height and width is resized, before it is padded or cropped."""
        if self.fit == "stretch":
            return self.height, self.width
        choose = min if self.fit == "pad" else max
        scale = choose(self.height / height, self.width / width)
        return max(1, round(height * scale)), max(1, round(width * scale))


def decode(data: bytes, channels: Channels = 3, *, max_bytes: int = MAX_BYTES, max_pixels: int = MAX_PIXELS) -> Decoded:
    """Decode an image to upright uint8 pixels `[height, width, channels]`, RGB (3 channels) or luma (1 channel).

    The bytes decide the format, not the name of a file. EXIF orientation is applied. Alpha is composited on white. 16
    bits are scaled to 8. CMYK is converted to RGB. ICC profiles are ignored. A JPEG with several pictures gives the
    first one. The limits are checked with the header, before the pixels are decoded, so a small file that claims a huge
    image takes no memory.

    Raises ImageError: empty_image, payload_too_large, unsupported_image_format, undecodable_image, animated_image,
    image_too_small, image_too_large.
    """
    pixels, _ = decode_with_header(data, channels, max_bytes=max_bytes, max_pixels=max_pixels)
    return pixels


def decode_with_header(
    data: bytes, channels: Channels = 3, *, max_bytes: int = MAX_BYTES, max_pixels: int = MAX_PIXELS
) -> tuple[Decoded, Header]:
    """Return what `decode` returns, and the header that was read for it. Raises ImageError as `decode` does."""
    if not data:
        raise ImageError("empty_image", "the file is empty")
    if len(data) > max_bytes:
        raise ImageError("payload_too_large", f"the file has {len(data):,} bytes; at most {max_bytes:,} are accepted")
    header = read_header(data)
    if header.frames > 1:
        raise ImageError("animated_image", "the file is an animation; send one picture")
    _check_size(header.width, header.height, max_pixels)
    pixels = _decode_with(data, cv2.IMREAD_UNCHANGED if header.transparent else cv2.IMREAD_COLOR_RGB)
    if pixels.shape[:2] != (header.height, header.width):
        raise ImageError("undecodable_image", "the file is damaged: its header and its pixels differ in size")
    if header.transparent:
        pixels = _on_white(pixels, header.transparent_gray)
    turn = TURNS.get(header.orientation)
    return as_channels(pixels if turn is None else turn(pixels), channels), header


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


def pixel_digest(pixels: Pixels) -> Digest:
    """SHA-256 of shape and values. Images with equal digests have equal pixels."""
    return Digest(hashlib.sha256(repr(pixels.shape).encode() + np.ascontiguousarray(pixels).tobytes()).hexdigest())


def _check_size(width: int, height: int, max_pixels: int) -> None:
    size = f"the image is {width} x {height} px"
    if min(width, height) < MIN_SIDE:
        raise ImageError("image_too_small", f"{size}; the smallest side accepted is {MIN_SIDE} px")
    if max(width, height) > MAX_SIDE or width * height > max_pixels:
        raise ImageError("image_too_large", f"{size}; at most {max_pixels / 1e6:g} megapixels are accepted")


def _decode_with(data: bytes, flags: int) -> np.ndarray:
    try:
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), flags | cv2.IMREAD_IGNORE_ORIENTATION)
    except cv2.error as error:
        if error.code == cv2.Error.StsNoMem:
            raise MemoryError(str(error)) from error  # not a fault of the file
        raise ImageError("undecodable_image", "the file is damaged: its pixels cannot be decoded") from error
    if pixels is None:
        raise ImageError("undecodable_image", "the file is damaged or cut off: its pixels cannot be decoded")
    return pixels


def _on_white(pixels: np.ndarray, transparent_gray: int | None) -> np.ndarray:
    """Composite the unchanged output of OpenCV (gray, BGR or BGRA, 8 or 16 bits) on white. Returns RGB with 8 bits.

    The arithmetic needs 16 bits. It is done in strips, because for the whole image it takes several times its memory.
    """
    height, width = pixels.shape[:2]
    rgb = np.empty((height, width, 3), np.uint8)
    rows = max(1, STRIP_PIXELS // width)
    for top in range(0, height, rows):
        rgb[top : top + rows] = _strip_on_white(pixels[top : top + rows], transparent_gray)
    return rgb


def _strip_on_white(pixels: np.ndarray, transparent_gray: int | None) -> np.ndarray:
    if pixels.ndim == 2 and transparent_gray is not None:
        pixels = np.where(pixels == transparent_gray, np.iinfo(pixels.dtype).max, pixels).astype(pixels.dtype)
    if pixels.dtype == np.uint16:
        pixels = (pixels >> 8).astype(np.uint8)
    if pixels.ndim == 2 or pixels.shape[2] != 4:
        return as_channels(pixels, 3)[:, :, ::-1]
    alpha = pixels[:, :, 3:].astype(np.uint16)
    mixed = (pixels[:, :, 2::-1] * alpha + 255 * (255 - alpha) + 127) // 255
    return mixed.astype(np.uint8)
