"""An explanation as a picture: teal where a region speaks for the label, magenta where it speaks against it."""

import base64

import cv2
import numpy as np
from jaxtyping import UInt8

from serving.contract.decode import as_channels
from serving.inference.occlusion import Drops, Explanation

FOR = (0, 200, 170)
AGAINST = (220, 0, 140)
"""RGB; skin, blood and stained tissue have neither colour, and the two differ in brightness, not in hue alone."""
STRONGEST = 0.7
"""Opacity of the strongest region: the picture stays visible below it."""
LEAST_SCALE = 0.05
"""Drops are shown relative to the largest one, but to no less than this: what changes nothing must not look strong."""
HEAT_SIDE = 128
"""Pixels of a heat map along each side; it is smooth, so more would only be more bytes."""
LONGER_SIDE = 256
"""Pixels of an overlay along its longer side, at least."""

RGBA = UInt8[np.ndarray, "height width 4"]
RGB = UInt8[np.ndarray, "height width 3"]


def heat(drops: Drops, height: int = HEAT_SIDE, width: int = HEAT_SIDE) -> RGBA:
    """The drops as colours `[height, width, 4]` to lay over the image: the stronger, the more opaque."""
    smooth = cv2.resize(drops, (width, height), interpolation=cv2.INTER_CUBIC)
    strength = np.clip(np.abs(smooth) / max(float(np.abs(drops).max()), LEAST_SCALE), 0, 1)
    colours = np.where(smooth[..., np.newaxis] > 0, np.array(FOR, np.uint8), np.array(AGAINST, np.uint8))
    return np.dstack([colours, np.rint(strength * STRONGEST * 255).astype(np.uint8)])


def overlay(explanation: Explanation) -> RGB:
    """The upright original, enlarged if it is tiny, under its heat map."""
    pixels = as_channels(explanation.original, 3)
    enlarge = max(1, round(LONGER_SIDE / max(pixels.shape[:2])))
    pixels = pixels.repeat(enlarge, axis=0).repeat(enlarge, axis=1)
    colours = heat(explanation.drops, *pixels.shape[:2])
    opacity = colours[..., 3:].astype(np.float32) / 255
    return np.rint(pixels * (1 - opacity) + colours[..., :3] * opacity).astype(np.uint8)


def as_png(pixels: UInt8[np.ndarray, "height width channels"]) -> bytes:
    """Encode gray, RGB or RGBA pixels."""
    order = {1: None, 3: cv2.COLOR_RGB2BGR, 4: cv2.COLOR_RGBA2BGRA}[pixels.shape[2]]
    done, encoded = cv2.imencode(".png", pixels if order is None else cv2.cvtColor(pixels, order))
    assert done
    return encoded.tobytes()


def as_json(explanation: Explanation) -> dict[str, object]:
    """The numbers, and as base64 of a PNG what the model saw and a heat map to lay over the original."""
    return {
        "label": explanation.label,
        "confidence": explanation.confidence,
        "drops": [[round(float(drop), 6) for drop in row] for row in explanation.drops],
        "fitted_png": base64.b64encode(as_png(explanation.fitted)).decode(),
        "heat_png": base64.b64encode(as_png(heat(explanation.drops))).decode(),
        "model_version": explanation.model_version,
    }
