"""Pictures that are sound: of one colour, as the model of the fixture `run` knows them, and smooth ones."""

import cv2
import numpy as np
from PIL import Image

COLOURS = {"Red rash": (200, 40, 40), "blue": (40, 60, 200), "green leaf": (60, 180, 60)}
RNG = np.random.default_rng(0)
SMOOTH = cv2.resize(RNG.integers(0, 256, (6, 8, 3), dtype=np.uint8), (40, 30), interpolation=cv2.INTER_CUBIC)
ALPHA = RNG.integers(0, 256, SMOOTH.shape[:2], dtype=np.uint8)
RGB = Image.fromarray(SMOOTH)
RGBA = Image.fromarray(np.dstack([SMOOTH, ALPHA]))


def picture(label: str, side: int = 40) -> np.ndarray:
    return np.full((side, side, 3), COLOURS[label], np.uint8)


def opened(data: bytes, flags: int = cv2.IMREAD_COLOR_RGB) -> np.ndarray:
    """The pixels of an image file by OpenCV alone."""
    pixels = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    assert pixels is not None
    return pixels
