"""LitServe with batching on, as its documentation writes it."""

import sys

import litserve as ls
import numpy as np
from classifier import Classifier


class Peer(ls.LitAPI):
    def setup(self, device: str) -> None:
        self.classifier = Classifier()

    def decode_request(self, request) -> np.ndarray:  # annotated, the body would have to be JSON
        return self.classifier.pixels(request["image"].file.read())

    def batch(self, inputs: list) -> np.ndarray:
        return np.stack(inputs)

    def predict(self, images: np.ndarray) -> list:
        return self.classifier.answers(images)

    def unbatch(self, output: list) -> list:
        return output

    def encode_response(self, output: dict) -> dict:
        return output


if __name__ == "__main__":
    server = ls.LitServer(Peer(max_batch_size=32, batch_timeout=0.001), accelerator="cpu", workers_per_device=1)
    server.run(host="127.0.0.1", port=int(sys.argv[1]), log_level="warning", generate_client_file=False)
