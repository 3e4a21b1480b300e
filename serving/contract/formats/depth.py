"""How values of more than 8 bits become 8."""

import functools
from dataclasses import dataclass

import numpy as np
from jaxtyping import UInt8, UInt16

HIGHEST = 65_535


@dataclass(frozen=True, kw_only=True)
class Depth:
    """Values from `low` to `high`, both included, are spread over 0 to 255; those beyond are 0 and 255.

    The default is `value >> 8`. Raises ValueError: unless 0 <= low < high <= HIGHEST.
    """

    low: int = 0
    high: int = HIGHEST

    def __post_init__(self) -> None:
        if not 0 <= self.low < self.high <= HIGHEST:
            raise ValueError(f"expected 0 <= low < high <= {HIGHEST}, got low {self.low} and high {self.high}")

    def __call__(self, values: UInt16[np.ndarray, "..."]) -> UInt8[np.ndarray, "..."]:
        """Map values of 16 bits."""
        mapped: np.ndarray = _table(self.low, self.high)[values]
        return mapped


SHIFTED = Depth()


@functools.cache
def _table(low: int, high: int) -> UInt8[np.ndarray, " 65536"]:
    inside = np.clip(np.arange(HIGHEST + 1), low, high) - low
    return (inside * 256 // (high - low + 1)).astype(np.uint8)
