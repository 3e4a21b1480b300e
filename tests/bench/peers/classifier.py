"""What every peer's service calls: the same file, decoder, resize and runtime, so that only the servers differ."""

import json
import os

import cv2
import numpy as np
import onnxruntime

INTERPOLATION = {"area": cv2.INTER_AREA, "linear": cv2.INTER_LINEAR}


class Classifier:
    """The model file that the environment variable MODEL names; one thread, as ours."""

    def __init__(self) -> None:
        cv2.setNumThreads(1)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.log_severity_level = 3
        self._session = onnxruntime.InferenceSession(os.environ["MODEL"], options, ["CPUExecutionProvider"])
        [text] = self._session.get_modelmeta().custom_metadata_map.values()
        card = json.loads(text)
        self._classes = card["classes"]
        size = card["preprocessing"]
        self._size = size["width"], size["height"]
        self._interpolation = INTERPOLATION[size["interpolation"]]

    def pixels(self, encoded: bytes) -> np.ndarray:
        """Encoded image -> uint8 `[height, width, 3]`, RGB."""
        decoded = cv2.imdecode(np.frombuffer(encoded, np.uint8), cv2.IMREAD_COLOR_RGB)
        return cv2.resize(decoded, self._size, interpolation=self._interpolation)

    def answers(self, images: np.ndarray) -> list[dict[str, object]]:
        """uint8 `[batch, height, width, 3]` -> label, confidence and probabilities of each."""
        rows = self._session.run(None, {"images": images})[0]
        return [self._answer(row) for row in rows]

    def _answer(self, row: np.ndarray) -> dict[str, object]:
        best = int(row.argmax())
        probabilities = dict(zip(self._classes, row.tolist(), strict=True))
        return {"label": self._classes[best], "confidence": float(row[best]), "probabilities": probabilities}
