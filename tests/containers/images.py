"""The names of the two images, the user they run as, and a picture to send."""

import tomllib

import cv2
import numpy as np
from sklearn.datasets import load_digits

from tests.support.paths import ROOT

VERSION: str = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
TRAIN, SERVE = (f"localhost/twinlens/{kind}:{VERSION}" for kind in ("train", "serve"))
SOMEBODY = 12345
"""A uid that no image knows."""


def digit(number: int) -> bytes:
    """A picture of a handwritten digit."""
    pixels = load_digits().images[number] * 255 / 16
    done, encoded = cv2.imencode(".png", cv2.resize(pixels.astype(np.uint8), (32, 32), interpolation=cv2.INTER_CUBIC))
    assert done
    return bytes(encoded)
