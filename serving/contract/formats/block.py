"""A part of an image, as its file stores it."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import UInt8, UInt16


@dataclass(frozen=True, kw_only=True)
class Block:
    """Decoded values of 8 or 16 bits, at their place in the image; a strip, a tile, or all of it."""

    colour: UInt8[np.ndarray, "rows columns _"] | UInt16[np.ndarray, "rows columns _"]
    """Gray (1 channel) or red, green, blue (3 channels)."""
    alpha: UInt8[np.ndarray, "rows columns 1"] | UInt16[np.ndarray, "rows columns 1"] | None = None
    """Opacity, of as many bits; None: opaque."""
    top: int = 0
    left: int = 0
