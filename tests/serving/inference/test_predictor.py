import asyncio
import dataclasses
import re
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from prometheus_client import CollectorRegistry

from serving.contract.model import Answer, Answers, Classifier, Images, open_model
from serving.contract.session import Placement
from serving.inference.predictor import Predictor
from serving.metrics import Metrics
from serving.settings import Settings
from tests.support import cuda


def test_running_requests_are_finished_by_their_model(run: Path, png: Callable[..., bytes]) -> None:
    """A new model replaces the old one under load: each answer comes from one model, and the old threads end."""
    registry = CollectorRegistry()
    metrics = Metrics(registry)

    def opened(version: str) -> Predictor:
        classifier = open_model(run / "model.onnx")
        classifier.card = dataclasses.replace(classifier.card, version=version)
        metrics.serves(classifier)
        return Predictor(classifier, Settings(), metrics)

    def info(version: str) -> float | None:
        card = open_model(run / "model.onnx")
        labels = {"name": "tiny", "version": version, "digest": card.digest, "provider": card.provider}
        return registry.get_sample_value("twinlens_model_info", labels)

    async def scenario() -> list[str]:
        data = png(np.full((40, 40, 3), 90, np.uint8))
        predictor = opened("old")
        assert info("old") == 1
        before = [asyncio.create_task(predictor.predict(data)) for _ in range(40)]
        await asyncio.sleep(0)
        predictor = opened("new")
        after = [asyncio.create_task(predictor.predict(data)) for _ in range(40)]
        answers = await asyncio.gather(*before, *after)
        return [answer.model_version for answer in answers]

    before = set(threading.enumerate())
    assert asyncio.run(scenario()) == ["old"] * 40 + ["new"] * 40
    assert (info("old"), info("new")) == (0, 1)
    ours = [thread for thread in set(threading.enumerate()) - before if thread.name.startswith(("decode", "model"))]
    for thread in ours:
        thread.join(10)
    assert not any(thread.is_alive() for thread in ours)
    labels = open_model(run / "model.onnx").card.classes
    samples = [registry.get_sample_value("twinlens_predictions_total", {"label": label}) for label in labels]
    counts = [sample for sample in samples if sample is not None]
    assert len(counts) == len(labels), "a label without predictions is exported, too"
    assert sum(counts) == 80


class Timed(Classifier):
    """The tiny model with a time for each image of a batch; `sizes` holds the batches that it has run."""

    def __init__(self, classifier: Classifier, seconds: Callable[[int], float]) -> None:
        super().__init__(classifier.path, classifier._session, classifier.card, classifier.digest)
        self.sizes: list[int] = []
        self._image_s = seconds

    def answers(self, images: Images) -> Answers:
        self.sizes.append(len(images))
        time.sleep(len(images) * self._image_s(len(images)))
        return super().answers(images)


@pytest.mark.parametrize(
    ("seconds", "largest"),
    [
        (lambda batch: 0.012 if batch > 4 else 0.006, 4),
        (lambda batch: 0.002 if batch > 4 else 0.008, 32),
        (lambda batch: 0.002 if batch > 4 else 0.001, 32),
    ],
    ids=["large batches take longer for an image", "large batches are faster", "one image takes little"],
)
def test_batches_are_as_large_as_the_model_gains_from(run: Path, seconds: Callable[[int], float], largest: int) -> None:
    classifier = Timed(open_model(run / "model.onnx"), seconds)
    predictor = Predictor(classifier, Settings(max_batch=32), Metrics(CollectorRegistry()))
    classifier.sizes.clear()

    async def scenario() -> None:
        pixels = np.zeros((24, 24, 3), np.uint8)
        await asyncio.gather(*(predictor.infer(pixels) for _ in range(96)))

    asyncio.run(scenario())
    assert max(classifier.sizes) == largest
    assert sum(classifier.sizes) == 96


def test_a_run_that_does_not_end_is_a_lost_model(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a second, where requests have 0.1 s: after three times these, only a restart helps."""
    monkeypatch.setattr("serving.inference.predictor.HANGS_S", 0.0)
    slow = Timed(open_model(run / "model.onnx"), lambda batch: 0.0)
    predictor = Predictor(slow, Settings(timeout_s=0.1), Metrics(CollectorRegistry()))
    slow._image_s = lambda batch: 1.0

    async def scenario() -> list[bool]:
        answer = asyncio.create_task(predictor.infer(np.zeros((24, 24, 3), np.uint8)))
        states = []
        for _ in range(2):
            await asyncio.sleep(0.2)
            states.append(predictor.alive)
        await answer
        return [*states, predictor.alive]

    predictor.batcher._inline = False
    assert asyncio.run(scenario()) == [True, False, True]


def disturbed(seconds: Callable[[int], float], size: int) -> Callable[[int], float]:
    """The times, but the second run of this size, the first one that is timed, takes ten times as long."""
    runs: Counter[int] = Counter()

    def image_s(batch: int) -> float:
        runs[batch] += 1
        return seconds(batch) * (10 if (batch, runs[batch]) == (size, 2) else 1)

    return image_s


@pytest.mark.parametrize(
    ("seconds", "size", "chosen"),
    [
        (lambda batch: 0.004 if batch > 4 else 0.008, 32, "batches of at most 32 images.* in a thread"),
        (lambda batch: 0.012 if batch > 4 else 0.006, 4, "batches of at most 4 images.* in a thread"),
        (lambda batch: 0.003, 1, "batches of at most 32 images.* in the event loop"),
    ],
    ids=["of the large batch", "of the small batch", "of one image"],
)
def test_a_busy_moment_does_not_change_the_choice_that_the_log_states(
    run: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    seconds: Callable[[int], float],
    size: int,
    chosen: str,
) -> None:
    quick = seconds(1) < 0.005
    monkeypatch.setattr("serving.inference.predictor.INLINE_S", 0.02 if quick else 0.001)
    monkeypatch.setattr("serving.inference.predictor.SLOW_IMAGE_S", 0.02 if quick else 0.005)
    classifier = Timed(open_model(run / "model.onnx"), disturbed(seconds, size))
    with caplog.at_level("INFO", "bentoml.twinlens"):
        Predictor(classifier, Settings(max_batch=32), Metrics(CollectorRegistry()))
    [line] = caplog.messages
    assert re.search(f"model tiny .* takes {chosen}", line), line


def test_on_a_gpu_only_sizes_run_that_were_warmed(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And the answers are those of the images alone; a slow model keeps its large batches."""
    provider = cuda.Provider()
    cuda.install(monkeypatch, provider)
    gpu = open_model(run / "model.onnx")
    assert gpu.on_gpu
    provider.sizes.clear()
    predictor = Predictor(gpu, Settings(max_batch=32), Metrics(CollectorRegistry()))
    warmed = set(provider.sizes)
    assert warmed == {1, 2, 4, 8, 16, 32}
    provider.sizes.clear()
    images = np.random.default_rng(0).integers(0, 256, (37, 24, 24, 3), dtype=np.uint8)
    threads = set()
    provider.fails = lambda number: threads.add(threading.current_thread().name)

    async def scenario(images: np.ndarray) -> list[Answer]:
        return await asyncio.gather(*(predictor.infer(image) for image in images))

    rows = [row for part in (images[:1], images[1:4], images) for row in asyncio.run(scenario(part))]
    assert set(provider.sizes) <= warmed
    assert len(provider.sizes) >= 3
    assert all(name.startswith("model") for name in threads), "no run of a GPU holds the event loop up"
    expected = open_model(run / "model.onnx", placement=Placement(on="cpu")).predict(images)
    assert np.abs(np.stack([row.probabilities for row in rows[-len(images) :]]) - expected).max() < 1e-6
