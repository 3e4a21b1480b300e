"""Images of which regions are covered: what an explanation shows the model, and how an image looks without them."""

import math

import numpy as np
from jaxtyping import Bool, UInt8

from serving.contract.decode import Pixels

GRID = 8
"""Regions along each side. An explanation runs the model on GRID * GRID + 1 images, whatever is sent."""
MARGIN = 0.5
"""How far a cover extends beyond its region, in regions: neighbours overlap by half, so a map has no seams."""


def covered(pixels: Pixels) -> UInt8[np.ndarray, "regions height width channels"]:
    """The image once for each region, row by row, with that region in the image's mean colour.

    The image's own mean removes a region and adds little that is new to the model. The grey that normalisation maps
    to 0 would be a visible object on most images.
    """
    height, width, _ = pixels.shape
    mean = np.rint(pixels.mean((0, 1))).astype(np.uint8)
    images = np.repeat(pixels[np.newaxis], GRID * GRID, axis=0)
    covers = ((rows, columns) for rows in _covers(height) for columns in _covers(width))
    for image, (rows, columns) in zip(images, covers, strict=True):
        image[rows, columns] = mean
    return images


def without(pixels: Pixels, regions: Bool[np.ndarray, "rows columns"]) -> Pixels:
    """The image with these regions, of GRID a side, in the mean colour of the others; all of them may not be hidden.

    Without a margin, so that shares add up. The mean of the whole image would keep a tint of what is hidden.
    """
    height, width, _ = pixels.shape
    hidden = regions[np.arange(height) * GRID // height][:, np.arange(width) * GRID // width]
    shown = pixels.copy()
    shown[hidden] = np.rint(pixels[~hidden].mean(0)).astype(np.uint8)
    return shown


def _covers(side: int) -> list[slice]:
    region = side / GRID
    return [
        slice(max(0, math.floor((index - MARGIN) * region)), min(side, math.ceil((index + 1 + MARGIN) * region)))
        for index in range(GRID)
    ]
