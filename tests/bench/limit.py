"""The limit of any server of this model: decode, resize and the model in batches of 32 on one core, no HTTP.

taskset --cpu-list 0 python -m tests.bench.limit model.onnx small 4
"""

import json
import sys
from pathlib import Path
from time import perf_counter, process_time

import cv2
import numpy as np

from serving.contract.model import open_model
from tests.bench.pictures import CLASSES, picture

BATCH = 32
LIMIT = "in process, no HTTP"
UNSEEN = 999
"""Seed of the pictures that are sent; the model was trained on others."""


def run(model: Path, size: str, seconds: float) -> dict[str, float]:
    """Images a second, and CPU time an image, of the service's own functions called one after the other."""
    cv2.setNumThreads(1)
    classifier = open_model(model)
    images = [picture(number % CLASSES, size, UNSEEN) for number in range(BATCH)]
    answered, start, cpu_s = 0, perf_counter(), process_time()
    while perf_counter() - start < seconds:
        classifier.predict(np.stack([classifier.card.preprocessing(image) for image in images]))
        answered += BATCH
    return {
        "rps": answered / (perf_counter() - start),
        "cpu_us": (process_time() - cpu_s) / answered * 1e6,
    }


if __name__ == "__main__":
    print(json.dumps(run(Path(sys.argv[1]), sys.argv[2], float(sys.argv[3]))))
