"""How values of more than 8 bits become 8: by the training images that have such values."""

import numpy as np
from jaxtyping import Int64

from serving.contract.decode import checked_header, stored_values
from serving.contract.formats.depth import HIGHEST, SHIFTED, Depth
from training.options.choices import DepthRule

BELOW, ABOVE = 0.005, 0.995
"""Shares of all values at which the percentile rule cuts: single hot or dead pixels are beyond them."""
USED_WELL = 0.5
"""Where the values between them use at least this share of the range, `auto` keeps the range."""

Counts = Int64[np.ndarray, " 65536"]


def counts(raw: bytes) -> Counts:
    """How often each colour value is in an image of more than 8 bits. Raises ImageError."""
    header = checked_header(raw)
    values = stored_values(raw, header)
    has_opacity = values.shape[2] in (2, 4)
    colours = values[:, :, :-1] if has_opacity else values
    return np.bincount(colours.ravel(), minlength=HIGHEST + 1)


def spread(counted: Counts) -> Depth:
    """The depth whose range is what lies between the two percentiles. Raises ValueError where nothing was counted."""
    total = np.cumsum(counted)
    if not total[-1]:
        raise ValueError("expected counts of at least one value")
    low, high = (int(np.searchsorted(total, share * total[-1])) for share in (BELOW, ABOVE))
    low = min(low, HIGHEST - 1)
    return Depth(low=low, high=max(high, low + 1))


def choose(rule: DepthRule, percentiles: Depth) -> Depth:
    """The depth by the rule, and by what `spread` returns of the training images."""
    if rule == "range":
        return SHIFTED
    used = (percentiles.high - percentiles.low + 1) / (HIGHEST + 1)
    return SHIFTED if rule == "auto" and used >= USED_WELL else percentiles
