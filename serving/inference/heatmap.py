"""An explanation as a picture: teal where a region supports the label, magenta where it opposes the label."""

import base64
import math

import cv2
import numpy as np
from jaxtyping import Float32, UInt8

from serving.contract.decode import Window, as_channels
from serving.inference.occlusion import Drops, Explanation

FOR = (0, 200, 170)
AGAINST = (220, 0, 140)
"""RGB; skin, blood and stained tissue have neither colour, and the two differ in brightness, not in hue alone."""
STRONGEST = 0.7
"""Opacity of the strongest region: the picture below stays visible."""
LEAST_SCALE = 0.05
"""Drops are shown relative to the largest drop, but at least to this, so that tiny drops do not look strong."""
HEATMAP_SIDE = 128
"""Pixels of a heat map along each side; it is smooth, so more pixels would only add bytes."""
LONGER_SIDE = 256
"""Pixels of an overlay along its longer side, at least."""

WHOLE: Window = (0.0, 1.0, 0.0, 1.0)
RGBA = UInt8[np.ndarray, "height width 4"]
RGB = UInt8[np.ndarray, "height width 3"]


def heatmap(drops: Drops, height: int = HEATMAP_SIDE, width: int = HEATMAP_SIDE, window: Window = WHOLE) -> RGBA:
    """The drops as colours `[height, width, 4]` to lay over the image; a larger drop is more opaque.

    `window` is where the regions lie in the image; what the model has not seen has no colour.
    """
    smooth = _placed(drops, height, width, window)
    strength = np.clip(np.abs(smooth) / max(float(np.abs(drops).max()), LEAST_SCALE), 0, 1)
    colours = np.where(smooth[..., np.newaxis] > 0, np.array(FOR, np.uint8), np.array(AGAINST, np.uint8))
    return np.dstack([colours, np.rint(strength * STRONGEST * 255).astype(np.uint8)])


def _placed(drops: Drops, height: int, width: int, window: Window) -> Float32[np.ndarray, "height width"]:
    top, bottom = (round(edge * height) for edge in window[:2])
    left, right = (round(edge * width) for edge in window[2:])
    size = max(1, right - left), max(1, bottom - top)  # of a very long image a crop is less than a pixel
    smooth = cv2.resize(drops, size, interpolation=cv2.INTER_CUBIC)
    seen = smooth[max(0, -top) : height - top, max(0, -left) : width - left]
    placed = np.zeros((height, width), np.float32)
    placed[max(0, top) :, max(0, left) :][: seen.shape[0], : seen.shape[1]] = seen
    return placed


def overlay(explanation: Explanation) -> RGB:
    """The upright original, enlarged if it is tiny, below its heat map."""
    pixels = as_channels(explanation.original, 3)
    enlarge = max(1, math.ceil(LONGER_SIDE / max(pixels.shape[:2])))
    pixels = pixels.repeat(enlarge, axis=0).repeat(enlarge, axis=1)
    height, width = pixels.shape[:2]
    colours = heatmap(explanation.drops, height, width, explanation.window)
    opacity = colours[..., 3:].astype(np.float32) / 255
    return np.rint(pixels * (1 - opacity) + colours[..., :3] * opacity).astype(np.uint8)


def as_png(pixels: UInt8[np.ndarray, "height width channels"]) -> bytes:
    """Encode gray, RGB or RGBA pixels."""
    order = {1: None, 3: cv2.COLOR_RGB2BGR, 4: cv2.COLOR_RGBA2BGRA}[pixels.shape[2]]
    done, encoded = cv2.imencode(".png", pixels if order is None else cv2.cvtColor(pixels, order))
    assert done
    return encoded.tobytes()


def as_json(explanation: Explanation) -> dict[str, object]:
    """The numbers, and as PNG in base64 the model's input and a heat map to lay over the original."""
    return {
        "label": explanation.label,
        "confidence": explanation.confidence,
        "drops": [[round(float(drop), 6) for drop in row] for row in explanation.drops],
        "fitted_png": base64.b64encode(as_png(explanation.fitted)).decode(),
        "heat_png": base64.b64encode(as_png(heatmap(explanation.drops, window=explanation.window))).decode(),
        "model_version": explanation.model_version,
    }
