import asyncio
import dataclasses
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
from prometheus_client import CollectorRegistry

from serving.contract.model import open_model
from serving.inference.predictor import Predictor
from serving.metrics import Metrics
from serving.settings import Settings


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
