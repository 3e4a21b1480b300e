"""Runs with --views: the file, its proof, its report and all that opens it."""

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from serving.contract.model import open_model
from serving.contract.session import Placement, open_session
from training.engine.runs import load_config
from training.export.measures.views import Gain, MeasuredViews, warnings
from training.export.onnx import graph
from training.metrics.classification import score
from training.metrics.comparison import compare
from training.models.views import without
from training.options.config import TrainConfig
from training.parity.answers import TorchModel
from training.parity.command import ParityConfig, parity
from training.train import train

OPTIONS: dict[str, Any] = {"model": "cnn", "width": 8, "image_size": 16, "epochs": 6, "promote": "never"}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """240 pictures of noise in two classes: a brighter line near an edge or in the middle, in any direction."""
    root = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    for number in range(240):
        label = ("edge", "middle")[number % 2]
        pixels = rng.integers(0, 120, (16, 16, 3), dtype=np.uint8)
        pixels[{"edge": 2, "middle": 7}[label]] += 60
        (root / label).mkdir(exist_ok=True)
        assert cv2.imwrite(str(root / label / f"{number}.png"), np.rot90(pixels, number % 4))
    return root


@pytest.fixture(scope="module")
def turned(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("turned")
    return train(
        TrainConfig(data=pictures, out=out, name="x", views="turns", quantize="int8", unfamiliar=0.2, **OPTIONS)
    )


@pytest.mark.slow
def test_the_file_answers_the_geometric_mean_of_its_answers_to_images_turned_by_hand(turned: Path) -> None:
    classifier = open_model(turned / "model.onnx")
    card = classifier.card
    assert (card.views, load_config(turned).symmetry) == ("turns", "square")
    torch_model = TorchModel(load_config(turned), turned / "checkpoints" / "best.pt", card)
    plain = open_session(graph(without(torch_model._model), (16, 16, 3)), Placement(on="cpu"), threads=1)
    images = np.random.default_rng(1).integers(0, 256, (6, 16, 16, 3), dtype=np.uint8)
    by_hand = [np.rot90(each, quarters, axes=(1, 2)) for quarters in range(4) for each in (images, images[:, :, ::-1])]
    answers = np.stack([plain.run(["probabilities"], {"images": np.ascontiguousarray(one)})[0] for one in by_hand])
    product = np.exp(np.log(answers).mean(0))
    expected = product / product.sum(1, keepdims=True)
    assert classifier.predict(images) == pytest.approx(expected, abs=1e-5)
    assert np.abs(answers[0] - expected).max() > 0.01, "the views of an image of noise have other answers"
    assert classifier.predict(np.ascontiguousarray(by_hand[3])) == pytest.approx(expected, abs=1e-5)


@pytest.mark.slow
def test_the_report_states_gain_and_cost(turned: Path) -> None:
    report = json.loads((turned / "report" / "report.json").read_text())
    found = report["views"]
    assert (found["views"], found["count"]) == ("turns", 8)
    for name in ("balanced_accuracy", "log_loss"):
        difference = found["differences"][name]
        assert difference["value"] == pytest.approx(report["scores"]["test"][name] - found["without"][name])
        assert difference["interval"][0] <= difference["value"] <= difference["interval"][1]
    right = found["only_with_right"] - found["only_without_right"]
    accuracy = report["scores"]["test"]["accuracy"] - found["without"]["accuracy"]
    assert right == pytest.approx(accuracy * report["scores"]["test"]["images"])
    assert 2 < found["seconds"] / found["seconds_without"] < 30
    assert found["sentence"] in (turned / "report" / "report.html").read_text()
    assert found["sentence"] in (turned / "report" / "report.md").read_text()
    assert report["parity"]["held"]
    assert report["parity"]["novelty"]["decisions_differ"] == 0
    assert report["quantized"]["agreement"] > 0.9


@pytest.mark.slow
def test_every_other_way_answers_the_same(turned: Path, pictures: Path, tmp_path: Path) -> None:
    folder = parity(ParityConfig(model=turned, data=pictures, provider="cpu", out=tmp_path / "x"))
    ways = json.loads((folder / "parity.json").read_text())["ways"]
    assert [each["labels_differ"] for each in ways] == [0, 0, 0], "torch, predictions.csv and the file"
    assert max(each["largest_difference"] for each in ways) < 1e-5


@pytest.mark.slow
def test_a_frozen_body_is_averaged_too(turned: Path, pictures: Path, tmp_path: Path) -> None:
    """Its features are computed once without views for the training, and with them for the answers."""
    options = OPTIONS | {"init_from": turned, "freeze": True, "views": "flips"}
    run = train(TrainConfig(data=pictures, out=tmp_path, name="frozen", **options))
    report = json.loads((run / "report" / "report.json").read_text())
    assert (report["views"]["count"], report["parity"]["held"], load_config(run).symmetry) == (2, True, "none")
    classifier = open_model(run / "model.onnx")
    images = np.random.default_rng(1).integers(0, 256, (6, 16, 16, 3), dtype=np.uint8)
    mirrored = np.ascontiguousarray(images[:, :, ::-1])
    assert classifier.predict(images) == pytest.approx(classifier.predict(mirrored), abs=1e-5)


def test_views_that_make_the_model_worse_are_warned_about() -> None:
    labels = np.arange(200) % 2
    sure = np.eye(2, dtype=np.float32)[labels] * 0.8 + 0.1
    poor = np.where((np.arange(200) % 4 < 2)[:, None], sure, sure[:, ::-1])
    scores = score(labels, sure, ("a", "b")), score(labels, poor, ("a", "b"))
    gain = Gain(without=scores[0], comparison=compare(labels, (sure, poor), scores, np.arange(200)))
    measured = MeasuredViews(views="flips", seconds=0.002, seconds_without=0.001, gain=gain)
    [warning] = warnings(measured)
    assert warning.startswith("`--views flips` costs time and makes the answers worse.")
    assert "balanced accuracy by -0.500" in warning
    assert "2 ms on one thread of the CPU, without views 1 ms" in warning
    assert list(warnings(MeasuredViews(views="flips", seconds=0.002, seconds_without=0.001, gain=None))) == []
