"""Mixed load for a minute, or TWINLENS_SOAK_S seconds: no wrong answer, no 5xx, no memory that grows with requests."""

import itertools
import json
import os
import random
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import httpx
import numpy as np
import pytest

from serving.contract.card.model_card import TOLERANCE
from serving.contract.formats.image_header import ImageError
from serving.contract.model import Classifier, open_model
from tests.support import forged
from tests.support.bad_inputs import MIB
from tests.support.watched_server import Watched, watched

# Taken out of the environment, where the service would refuse it as a setting it does not know.
SOAK_S = float(os.environ.pop("TWINLENS_SOAK_S", "60"))
CLIENTS = 4
BAD_SHARE = 0.02
MOST_PER_1000 = 5 * MIB
LEAST_RISE = 4 * MIB
SIZES = [(24, 24), (120, 100), (600, 450), (1600, 1200)]

Answer = dict[str, float] | str
"""Probabilities by class, or the code of an error."""


@dataclass
class Soak:
    """The result: counts by status, answers that were wrong, and (requests, resident bytes) over time."""

    statuses: Counter[int] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    memory: list[tuple[int, int]] = field(default_factory=list)

    @property
    def requests(self) -> int:
        return self.statuses.total()

    def growth(self) -> tuple[float, float]:
        """Bytes by which resident memory rises in the second half: a 1,000 requests, and in all; by least squares."""
        requests, resident = np.array(self.memory[len(self.memory) // 2 :], float).T
        slope = float(np.polyfit(requests, resident, 1)[0])
        return slope * 1000, slope * (requests[-1] - requests[0])

    def leaks(self) -> bool:
        """A steep rise of less than a few arenas of the allocator is none: a slow machine has too few requests."""
        per_1000, rise = self.growth()
        return per_1000 > MOST_PER_1000 and rise > LEAST_RISE


def good_images() -> list[bytes]:
    """Each size as JPEG, PNG and WebP, each of another picture."""
    rng = np.random.default_rng(0)
    images = []
    for (width, height), kind in itertools.product(SIZES, (".jpg", ".png", ".webp")):
        colours = rng.integers(0, 256, (3, 4, 3), dtype=np.uint8)
        picture = cv2.resize(colours, (width, height), interpolation=cv2.INTER_CUBIC)
        images.append(bytes(cv2.imencode(kind, picture)[1]))
    return images


def bad_images() -> list[bytes]:
    cut = [data[: len(data) // 2] for data in (forged.JPEG, forged.PNG, forged.WEBP)]
    return [b"", *cut, *list(forged.OTHERS.values())[:6], forged.png_that_claims(30_000, 30_000), forged.flat(1, 1)]


def answers(model: Path, images: list[bytes]) -> list[Answer]:
    """The output of the model file itself, in this process."""
    classifier = open_model(model)
    return [_answer(classifier, data) for data in images]


def _answer(classifier: Classifier, data: bytes) -> Answer:
    try:
        pixels = classifier.card.preprocessing(data)
    except ImageError as error:
        return error.code
    return dict(zip(classifier.card.classes, classifier.predict(pixels[np.newaxis])[0].tolist(), strict=True))


def is_right(reply: dict[str, Any], expected: Answer) -> bool:
    if isinstance(expected, str):
        return "error" in reply and reply["error"]["code"] == expected
    probabilities = reply.get("probabilities", {})
    return set(probabilities) == set(expected) and all(
        abs(probabilities[label] - value) <= TOLERANCE for label, value in expected.items()
    )


@dataclass(frozen=True)
class Images:
    """Images that are sent, and the expected reply to each."""

    good: list[bytes]
    bad: list[bytes]
    expected: dict[bytes, Answer]

    def draw(self, rng: random.Random) -> list[bytes]:
        """One image, or four in one of ten requests; BAD_SHARE of them are bad."""
        return [
            rng.choice(self.bad if rng.random() < BAD_SHARE else self.good) for _ in range(rng.choice([1] * 9 + [4]))
        ]


def soak(server: Watched, model: Path, seconds: float) -> Soak:
    good, bad = good_images(), bad_images()
    images = Images(good, bad, dict(zip(good + bad, answers(model, good + bad), strict=True)))
    result = Soak()
    for data in good * 2:  # the allocator's first growth is not what is measured
        httpx.post(f"{server.address}/predict", files={"image": data}, timeout=30)
    until = time.monotonic() + seconds
    with ThreadPoolExecutor(CLIENTS) as pool:
        clients = [
            pool.submit(_client, server.address, random.Random(seed), images, until, result) for seed in range(CLIENTS)
        ]
        while time.monotonic() < until:
            result.memory.append((result.requests, server.worker.memory_info().rss))
            time.sleep(min(1.0, seconds / 60))
        for client in clients:
            client.result()
    return result


def _client(address: str, rng: random.Random, images: Images, until: float, result: Soak) -> None:
    with httpx.Client(base_url=address, timeout=30) as client:
        while time.monotonic() < until:
            sent = images.draw(rng)
            if len(sent) == 1:
                reply = client.post("/predict", files={"image": sent[0]})
                replies = [reply.json()]
            else:
                reply = client.post("/predict_batch", files=[("images", data) for data in sent])
                replies = reply.json()["results"] if reply.status_code == 200 else []
            result.statuses[reply.status_code] += 1
            if reply.status_code == 429:
                continue
            for data, answer in itertools.zip_longest(sent, replies):
                if not is_right(answer, images.expected[data]):
                    result.wrong.append(f"{reply.status_code} {json.dumps(answer)[:300]} for {data[:12]!r}")


@pytest.mark.alone
@pytest.mark.long
@pytest.mark.timeout(SOAK_S + 200)
def test_a_soak_of_mixed_load(run: Path, tmp_path: Path) -> None:
    with watched(run / "model.onnx", tmp_path) as server:
        result = soak(server, run / "model.onnx", SOAK_S)
    per_1000, rise = (size / MIB for size in result.growth())
    print(
        f"{result.requests:,} requests {dict(result.statuses)}, {per_1000:+.2f} MiB per 1,000, {rise:+.1f} MiB in half"
    )
    assert result.wrong == []
    assert {status for status in result.statuses if status >= 500} == set()
    assert not result.leaks()
    refused = sum(count for status, count in result.statuses.items() if status in (400, 413, 415, 422))
    assert 0 < refused / result.requests < 0.06


@pytest.mark.alone
@pytest.mark.long
def test_a_planted_leak_is_detected(run: Path, tmp_path: Path) -> None:
    """100 KB a request: twenty seconds are enough."""
    with watched(run / "model.onnx", tmp_path, "tests.support.mutants:Twinlens", MUTANT="leak") as server:
        result = soak(server, run / "model.onnx", 20)
    assert result.wrong == []
    assert result.leaks()
