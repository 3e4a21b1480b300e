import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import psutil
import pytest

from serving.contract.card import Golden, ModelCard
from serving.contract.model import ModelRefused, open_model
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


def test_goldens_are_small_and_resized_on_replay(run: Path) -> None:
    card = open_model(run / "model.onnx").card
    assert len(card.goldens) >= 4
    assert sum(example.image.startswith(b"\x89PNG") for example in card.goldens) >= 4
    assert all(len(example.image) < 40_000 for example in card.goldens)


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


@pytest.mark.parametrize("side", ["serving.contract.model", "training.export.parity"])
def test_the_runtime_leaves_no_identifier_of_the_machine_and_reports_to_nobody(tmp_path: Path, side: str) -> None:
    variables = {"PATH": os.environ["PATH"], "HOME": str(tmp_path)}  # where it knows of CI it does neither anyway
    subprocess.run([sys.executable, "-c", f"import {side}"], cwd=ROOT, env=variables, check=True)
    assert not [path for path in tmp_path.rglob("*") if "onnxruntime" in path.name]
