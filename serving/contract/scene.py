"""Pictures that are made from a few numbers, to the same bit on every machine: goldens too large to carry in a file."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import UInt8

from serving.contract.decode import Decoded, Preprocessing, as_channels

CHANNELS = 3


@dataclass(frozen=True, kw_only=True)
class Scene:
    """A colour picture with gradients, hard edges in lightness and in colour, and fine noise.

    It shows no person and comes from no data. Only integers are used, and random bits of a generator whose stream NumPy
    keeps (NEP 19), so that every machine draws equal pixels.
    """

    height: int
    width: int
    seed: int

    def draw(self) -> UInt8[np.ndarray, "height width 3"]:
        """The pixels, RGB."""
        random = np.random.PCG64(self.seed)
        pixels = np.empty((self.height, self.width, CHANNELS), np.uint8)
        rows, columns = np.arange(self.height), np.arange(self.width)
        for channel in range(CHANNELS):
            down, across, size, shift = map(int, random.random_raw(4) & 0xFF)
            # 64 to 319 steps from side to side in 256 values, so that some gradients wrap around: an edge.
            slope = np.add.outer(
                (rows * (down + 64) // self.height).astype(np.uint8),
                (columns * (across + 64) // self.width).astype(np.uint8),
            )
            side = max(2, min(self.height, self.width) * (64 + size) // 1024)  # 1/16 to 5/16 of the shorter side
            odd_rows, odd_columns = (((axis + shift) // side % 2).astype(np.uint8) for axis in (rows, columns))
            squares = np.bitwise_xor.outer(odd_rows, odd_columns) * np.uint8(96)
            pixels[:, :, channel] = slope ^ squares
        noise = random.random_raw(-(-pixels.size // 8)).astype("<u8", copy=False).view(np.uint8)[: pixels.size]
        pixels ^= (noise & 7).reshape(pixels.shape)
        return pixels


def decoded(image: bytes | Scene, preprocessing: Preprocessing) -> Decoded:
    """The pixels of an encoded image or of a scene, uint8, before they are resized. Raises what `decode` raises."""
    if isinstance(image, Scene):
        return as_channels(image.draw(), preprocessing.channels)
    return preprocessing.decoded(image)
