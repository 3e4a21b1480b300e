"""How alike the textures of two pictures are: one laid over the other, whole and as a crop of it.

Many pairs are compared at once, as arrays whose last axis is the pair. One pair at a time takes several times as long.
"""

from functools import cache

import cv2
import numpy as np
from jaxtyping import Bool, Float32, Int8

SIDE = 64
COARSE_SIDE = 32
CROPS = ((0.975, 0.975), (0.95, 0.95), (0.925, 0.925), (0.9, 0.9), (1, 0.95), (0.95, 1))
"""Shares of height and width of one picture that the other may show."""
CROPS_REACH = 0.95
"""The highest similarity of a resampled crop. Where a higher one is required, crops are not compared."""
WAYS = [(shares, first_is_part) for shares in CROPS for first_is_part in (False, True)]
COARSE_ERROR = 0.25
"""At 32 px a crop may look less alike than at 64 px: by at most 0.19 in photographs of skin and of hands, pictures of
clothes, and noise."""

Textures = Int8[np.ndarray, "pairs 64 64"]
Similarities = Float32[np.ndarray, " pairs"]
Stack = Float32[np.ndarray, "_ _ pairs"]
"""Pictures `[height, width, pairs]`."""


def compare(first: Textures, second: Textures, least: float) -> tuple[Similarities, Bool[np.ndarray, " pairs"]]:
    """The largest correlation of each two, and whether it is that of a crop.

    Every way to crop is compared at 32 px, and the two best again at 64 px. That is left out where the whole pictures
    are more similar than a crop can be, and where no way may reach `least` (COARSE_ERROR).
    """
    stacks = [np.ascontiguousarray(textures.transpose(1, 2, 0)).astype(np.float32) for textures in (first, second)]
    similarity, cropped = _whole(*stacks), np.zeros(len(first), bool)
    if least > CROPS_REACH:
        return similarity, cropped
    coarse = _coarse(*stacks)
    for pair in np.flatnonzero((similarity <= CROPS_REACH) & (coarse.max(axis=0) >= least - COARSE_ERROR)):
        two = np.argsort(-coarse[:, pair], kind="stable")[:2]
        best = max(_crop(first[pair], second[pair], *WAYS[way]) for way in two)
        if best > similarity[pair]:
            similarity[pair], cropped[pair] = best, True
    return similarity, cropped


def _whole(first: Stack, second: Stack) -> Similarities:
    one, other = (stack - stack.mean((0, 1)) for stack in (first, second))
    energy = np.einsum("ijp,ijp->p", one, one) * np.einsum("ijp,ijp->p", other, other)
    return _share(np.einsum("ijp,ijp->p", one, other), energy)


def _coarse(first: Stack, second: Stack) -> Float32[np.ndarray, "ways pairs"]:
    """The similarity of each pair at 32 px in each of WAYS."""
    small = [_halved(stack) for stack in (first, second)]
    integrals = [(_integral(stack), _integral(stack * stack)) for stack in small]
    return np.array(
        [
            _best_region(small[first_is_part], integrals[first_is_part], _shrunk(small[not first_is_part], shares))
            for shares, first_is_part in WAYS
        ]
    )


def _halved(stack: Stack) -> Stack:
    """The mean of each block of 2 x 2 pixels."""
    rows = stack[::2] + stack[1::2]
    halved: Stack = (rows[:, ::2] + rows[:, 1::2]) / 4
    return halved


def _shrunk(part: Stack, shares: tuple[float, float]) -> Stack:
    """The stack, resampled by area to these shares of its side."""
    side = len(part)
    height, width = (round(share * side) for share in shares)
    rows = _area(height, side) @ part.reshape(side, -1)
    shrunk: Stack = _area(width, side) @ rows.reshape(height, side, -1)
    return shrunk


@cache
def _area(to: int, side: int) -> Float32[np.ndarray, "to side"]:
    """OpenCV's resampling by area along one axis, as a matrix: what it makes of the identity."""
    return cv2.resize(np.eye(side, dtype=np.float32), (side, to), interpolation=cv2.INTER_AREA)


def _integral(values: Stack) -> Stack:
    """The sums `[height + 1, width + 1, pairs]` of all values above and to the left."""
    side = len(values)
    before = np.tri(side + 1, side, -1, dtype=np.float32)
    rows = before @ values.reshape(side, -1)
    integral: Stack = before @ rows.reshape(side + 1, side, -1)
    return integral


def _best_region(whole: Stack, integrals: tuple[Stack, Stack], part: Stack) -> Similarities:
    """The largest correlation of each part with a region of its size in its `whole`.

    As OpenCV's TM_CCOEFF_NORMED, but for many pairs. `integrals` are those of `whole` and of its squares.
    """
    height, width = part.shape[:2]
    part = part - part.mean((0, 1))
    energy = np.einsum("ijp,ijp->p", part, part)
    similarities = []
    for top in range(len(whole) - height + 1):
        for left in range(len(whole) - width + 1):
            bottom, right = top + height, left + width
            total, squares = (
                table[bottom, right] - table[top, right] - table[bottom, left] + table[top, left] for table in integrals
            )
            product = np.einsum("ijp,ijp->p", whole[top:bottom, left:right], part)
            similarities.append(_share(product, energy * (squares - total * total / (height * width))))
    best: Similarities = np.max(similarities, axis=0)
    return best


def _share(product: Similarities, energy: Similarities) -> Similarities:
    """The correlation, 0 where one of two pictures has no texture."""
    share: Similarities = np.zeros_like(product)
    np.divide(product, np.sqrt(np.maximum(energy, 0)), out=share, where=energy > 1)
    clipped: Similarities = np.clip(share, -1, 1)  # rounding may lead beyond
    return clipped


def _crop(first: np.ndarray, second: np.ndarray, shares: tuple[float, float], first_is_part: bool) -> float:
    """The largest correlation of one texture, resampled to shares of its side, with any region of the other."""
    whole, part = (second, first) if first_is_part else (first, second)
    if not whole.any() or not part.any():  # OpenCV would say 1
        return 0.0
    height, width = (round(share * SIDE) for share in shares)
    shrunk = cv2.resize(part.astype(np.float32), (width, height), interpolation=cv2.INTER_AREA)
    return float(cv2.matchTemplate(whole.astype(np.float32), shrunk, cv2.TM_CCOEFF_NORMED).max())
