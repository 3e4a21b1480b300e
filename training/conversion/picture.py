"""A picture that was converted to 8 bits, and what was done for that."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Shaped, UInt8
from PIL import Image

from serving.contract.decode import MAX_PIXELS

BELOW, ABOVE = 0.5, 99.5
"""Percentiles of an image between which values lie that no window is known of."""


@dataclass(frozen=True, kw_only=True)
class Picture:
    """An upright image of mode L or RGB. The other fields are those of import.csv, for people."""

    image: Image.Image
    frame: str = ""
    """Which of several frames it is; empty where there is one."""
    depth: str = "8"
    """Bits of a value in the source."""
    window: str = ""
    """The values that became 0 and 255; empty where values of 8 bits were taken as they are."""


def check_size(width: int, height: int) -> None:
    """Raise ValueError for an image that training would not read."""
    if width * height > MAX_PIXELS:
        raise ValueError(f"it has {width} x {height} px; at most {MAX_PIXELS / 1e6:g} megapixels are read")


def stretched(values: Shaped[np.ndarray, "height width"], low: float, high: float) -> UInt8[np.ndarray, "height width"]:
    """Values from `low` to `high` as 0 to 255; those beyond are 0 and 255."""
    width = max(high - low, 1e-30)
    return np.rint(np.clip((values.astype(np.float64) - low) / width, 0, 1) * 255).astype(np.uint8)


def percentiles(values: Shaped[np.ndarray, "height width"]) -> tuple[float, float]:
    """What lies between BELOW and ABOVE of the finite values. Raises ValueError where there are none."""
    finite = values[np.isfinite(values)]
    if not finite.size:
        raise ValueError("no value is finite")
    low, high = np.percentile(finite, [BELOW, ABOVE])
    return float(low), float(high)
