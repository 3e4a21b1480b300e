"""BentoML, as its documentation writes a service that takes an image file."""

from pathlib import Path

import bentoml
import numpy as np
from classifier import Classifier


@bentoml.service(logging={"access": {"enabled": False}})  # as every other server here
class Peer:
    def __init__(self) -> None:
        self.classifier = Classifier()

    @bentoml.api
    def predict(self, image: Path) -> dict:
        pixels = self.classifier.pixels(image.read_bytes())
        [answer] = self.classifier.answers(pixels[np.newaxis])
        return answer
