import dataclasses
import os
import subprocess
import sys
import time
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import psutil
import pytest
from PIL import Image

from serving.contract import decode, model
from serving.contract.card.model_card import Golden, ModelCard
from serving.contract.formats.image_header import FILE_EXTENSIONS
from serving.contract.model import Answers, ModelRefused, open_model
from serving.contract.session import Placement
from tests.support.forged_models import REFUSED, Change, golden, rewritten
from tests.support.paths import ROOT


@pytest.mark.parametrize(("change", "reason"), REFUSED.values(), ids=REFUSED)
def test_a_model_that_is_not_what_it_says_is_refused_by_name(
    run: Path, tmp_path: Path, change: Change, reason: str
) -> None:
    with pytest.raises(ModelRefused, match=reason):
        open_model(rewritten(run / "model.onnx", tmp_path / "model.onnx", change))


def test_unreadable_files_are_refused_by_name(run: Path, tmp_path: Path) -> None:
    damaged = tmp_path / "damaged.onnx"
    damaged.write_bytes((run / "model.onnx").read_bytes()[:5000])
    for path, reason in {
        tmp_path / "absent.onnx": "No such file",
        tmp_path: "cannot be read",
        damaged: "not a graph",
    }.items():
        with pytest.raises(ModelRefused, match=reason):
            open_model(path)


def test_a_missing_gpu_is_an_error_when_one_is_required(run: Path) -> None:
    if open_model(run / "model.onnx").provider == "CUDAExecutionProvider":
        pytest.skip("there is a GPU")
    with pytest.raises(ModelRefused, match="GPU is required"):
        open_model(run / "model.onnx", placement=Placement(on="cuda"))


def _files(card: ModelCard) -> list[bytes]:
    return [example.image for example in card.goldens if isinstance(example.image, bytes)]


def test_goldens_are_of_every_format_and_small(run: Path) -> None:
    card = open_model(run / "model.onnx").card
    files = _files(card)
    assert {Image.open(BytesIO(file)).format for file in files} == set(FILE_EXTENSIONS)
    assert sum(map(len, files)) < 150_000
    [scene] = [example.image for example in card.goldens if not isinstance(example.image, bytes)]
    assert scene.height * scene.width == 12_000_000


def _chroma_by_repetition(decode_with: Callable[[bytes, int], np.ndarray]) -> Callable[[bytes, int], np.ndarray]:
    """As a JPEG decoder without "fancy" upsampling makes colour of half the resolution."""

    def decode(data: bytes, flags: int) -> np.ndarray:
        pixels = decode_with(data, flags)
        if not data.startswith(b"\xff\xd8") or pixels.ndim != 3 or min(pixels.shape[:2]) < 200:
            return pixels
        converted = cv2.cvtColor(pixels, cv2.COLOR_RGB2YCrCb)
        converted[:, :, 1:] = np.kron(converted[::2, ::2, 1:], np.ones((2, 2, 1), np.uint8))
        return cv2.cvtColor(converted, cv2.COLOR_YCrCb2RGB)

    return decode


def _bgr(decode_with: Callable[[bytes, int], np.ndarray]) -> Callable[[bytes, int], np.ndarray]:
    return lambda data, flags: decode_with(data, flags)[:, :, ::-1].copy()


def _one_level_off(fit: Callable[..., np.ndarray]) -> Callable[..., np.ndarray]:
    """A resize that rounds otherwise where much is shrunk, as with the photographs of a telephone."""

    def fitted(pixels: np.ndarray, *options: Any) -> np.ndarray:
        resized = fit(pixels, *options)
        return resized if pixels.size < 10_000_000 else resized ^ 1

    return fitted


PLANTED: dict[str, tuple[str, Callable[[Any], Any], str]] = {
    "another resize": ("INTERPOLATION_FLAGS", lambda flags: flags | {"area": cv2.INTER_LINEAR}, "resizing does not"),
    "another resize of large images": ("fit", _one_level_off, "golden 10: resizing does not"),
    "BGR for RGB": ("imdecode", _bgr, "golden 0: decoding does not"),
    "EXIF ignored": ("TURNS", lambda turns: {}, "golden 4: decoding does not"),
    "another chroma upsampling": ("imdecode", _chroma_by_repetition, "golden 3: decoding does not"),
    "alpha ignored": ("_on_white", lambda on_white: lambda colour, alpha, gray, depth: colour, "golden 1: decod"),
}


@pytest.mark.parametrize(("name", "change", "reason"), PLANTED.values(), ids=PLANTED)
def test_a_service_that_sees_other_pixels_does_not_start(
    run: Path, monkeypatch: pytest.MonkeyPatch, name: str, change: Callable[[Any], Any], reason: str
) -> None:
    """Each planted in the code that both sides share, as another version of a library would change it."""
    open_model(run / "model.onnx")
    monkeypatch.setattr(decode, name, change(getattr(decode, name)))
    with pytest.raises(ModelRefused, match=reason):
        open_model(run / "model.onnx")


@pytest.mark.alone
@pytest.mark.flaky(reruns=2)  # other work on the machine only slows it down: 0.2 s on a quiet one, 0.5 to 0.7 s once
def test_goldens_are_replayed_within_half_a_second(run: Path) -> None:
    """At every start and reload; processor time, of all threads."""
    classifier = open_model(run / "model.onnx", threads=1)
    times = []
    for _ in range(5):
        begun = time.process_time()
        assert list(model._golden_faults(classifier)) == []
        times.append(time.process_time() - begun)
    assert min(times) < 0.5


def test_the_answer_does_not_depend_on_the_batch_or_its_neighbours(run: Path) -> None:
    classifier = open_model(run / "model.onnx")
    images = np.random.default_rng(0).integers(0, 256, (33, 24, 24, 3), dtype=np.uint8)
    alone = np.concatenate([classifier.predict(image[None]) for image in images])
    for size in (2, 7, 33):
        together = np.concatenate([classifier.predict(images[start : start + size]) for start in range(0, 33, size)])
        assert np.abs(together - alone).max() < 1e-6
    assert np.abs(alone.sum(1) - 1).max() < 1e-6


def test_the_memory_of_a_large_batch_is_given_back(run: Path) -> None:
    classifier, process = open_model(run / "model.onnx"), psutil.Process()
    images = np.random.default_rng(0).integers(0, 256, (8192, 24, 24, 3), dtype=np.uint8)
    before = classifier.predict(images)
    taken = process.memory_info().rss
    classifier.release_memory()
    assert taken - process.memory_info().rss > 50e6, "8,192 images as float32 are 57 MB"
    assert np.array_equal(classifier.predict(images), before)


def test_a_golden_within_tolerance_is_accepted(run: Path, tmp_path: Path) -> None:
    card: ModelCard = open_model(run / "model.onnx").card
    first: Golden = card.goldens[0]
    nudged = [value + 0.5e-4 for value in dataclasses.asdict(first)["probabilities"]]
    path = rewritten(run / "model.onnx", tmp_path / "m.onnx", lambda graph, value: golden(value, probabilities=nudged))
    assert open_model(path).card.goldens[0].probabilities == tuple(nudged)


@pytest.mark.slow
@pytest.mark.parametrize("side", ["serving.contract.model", "training.export.parity"])
def test_the_runtime_leaves_no_identifier_of_the_machine_and_reports_to_nobody(tmp_path: Path, side: str) -> None:
    variables = {"PATH": os.environ["PATH"], "HOME": str(tmp_path)}  # where it knows of CI it does neither anyway
    subprocess.run([sys.executable, "-c", f"import {side}"], cwd=ROOT, env=variables, check=True)
    assert not [path for path in tmp_path.rglob("*") if "onnxruntime" in path.name]


def test_answers_to_batches_are_joined_as_if_to_one() -> None:
    rng = np.random.default_rng(0)
    probabilities, novelty = rng.random((5, 3), np.float32), rng.random(5, np.float32)
    joined = Answers.concatenate([Answers(probabilities[at], novelty[at]) for at in ([0, 1], [2, 3, 4])])
    assert joined.novelty is not None
    assert np.array_equal(joined.probabilities, probabilities)
    assert np.array_equal(joined.novelty, novelty)
    assert joined.embeddings is None
