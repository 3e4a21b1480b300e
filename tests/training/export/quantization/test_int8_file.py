import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import onnx
import pytest

from serving.contract.model import ModelRefused, open_model
from serving.contract.session import Placement
from tests.support import cuda
from tests.support.server import serving
from training.__main__ import main
from training.data.dataset import Dataset, load_dataset
from training.export.quantization import graph
from training.export.quantization.int8_file import quantize
from training.metrics import calibration
from training.options.config import TrainConfig
from training.train import train

OPTIONS: dict[str, Any] = {"model": "mlp", "hidden": (32,), "image_size": 24, "val_fraction": 0.2}


@pytest.fixture(scope="module")
def dataset(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return load_dataset(TrainConfig(data=photos, out=tmp_path_factory.mktemp("runs"), **OPTIONS))


@pytest.fixture(scope="module")
def int8(run: Path, dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("int8") / "model.int8.onnx"
    assert quantize(run / "model.onnx", path, dataset, least_agreement=0.99).published
    return path


def test_the_file_is_smaller_and_its_card_describes_its_own_output(run: Path, int8: Path, dataset: Dataset) -> None:
    fp32, quantized = open_model(run / "model.onnx"), open_model(int8)
    assert int8.stat().st_size < 0.7 * (run / "model.onnx").stat().st_size
    assert quantized.card.version == f"{fp32.card.version}-int8"
    for ours, theirs in zip(quantized.card.goldens, fp32.card.goldens, strict=True):
        assert (ours.image, ours.pixels) == (theirs.image, theirs.pixels)
        assert ours.probabilities != theirs.probabilities
    test = dataset.splits["test"]
    accuracy = (quantized.predict(dataset.images[test]).argmax(1) == dataset.labels[test]).mean()
    assert quantized.card.scores["accuracy"].value == pytest.approx(accuracy)


def test_probabilities_do_not_depend_on_the_other_images_of_a_batch(int8: Path) -> None:
    classifier = open_model(int8)
    images = np.random.default_rng(0).integers(0, 256, (9, 24, 24, 3), dtype=np.uint8)
    images[1:] //= 20  # as dynamic quantisation would notice: another range
    alone = np.concatenate([classifier.predict(image[None]) for image in images])
    assert np.abs(classifier.predict(images) - alone).max() < 1e-6


def test_a_file_whose_labels_disagree_is_not_published(run: Path, dataset: Dataset, tmp_path: Path) -> None:
    """Scales measured on images that are all the normalisation's mean fit nothing else."""
    images = np.array(dataset.images)
    images[dataset.splits["train"]] = (124, 116, 104)
    path, other = tmp_path / "model.int8.onnx", replace(dataset, images=images)
    quantized = quantize(run / "model.onnx", path, other, least_agreement=0.99)
    assert quantized.agreement < 0.99
    assert not quantized.published
    assert list(tmp_path.iterdir()) == []
    enough = quantize(run / "model.onnx", path, other, least_agreement=quantized.agreement)
    assert enough.published
    assert open_model(path).card.scores["accuracy"].value == enough.scores.accuracy, "its own, not those of float32"


@pytest.mark.slow
def test_from_the_head_on_nothing_is_rounded(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the logits nor those with the bias for rare classes, which 18 validation images alone do not give."""
    monkeypatch.setattr(calibration, "MIN_IMAGES", 18)
    monkeypatch.setattr(calibration, "fit_bias", lambda *_: (0.1, 0.0, -0.2))
    options: dict[str, Any] = OPTIONS | {"epochs": 1, "balance": "bias", "quantize": "int8", "int8_agreement": 0.01}
    run = train(TrainConfig(data=photos, out=tmp_path, name="x", **options))
    assert open_model(run / "model.int8.onnx").card.calibration.bias == (0.1, 0.0, -0.2)
    nodes = onnx.load(run / "model.int8.onnx").graph.node
    head = max(index for index, node in enumerate(nodes) if node.op_type == "Gemm")
    kinds = [node.op_type for node in nodes[head + 1 :]]
    assert "Add" in kinds
    assert "QuantizeLinear" in [node.op_type for node in nodes[:head]]
    assert "QuantizeLinear" not in kinds


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["mlp", "cnn"])
def test_a_run_leaves_both_files_and_the_report_compares_them(photos: Path, tmp_path: Path, kind: str) -> None:
    options: dict[str, Any] = OPTIONS if kind == "mlp" else {"model": "cnn", "width": 8, "image_size": 24}
    options = options | {"epochs": 3, "augment": "none", "val_fraction": 0.4}
    config = TrainConfig(data=photos, out=tmp_path, name="x", quantize="int8", **options)
    run = train(config)
    facts = json.loads((run / "report" / "report.json").read_text())["quantized"]
    assert facts["published"] == (run / "model.int8.onnx").exists() == (facts["agreement"] >= 0.99)
    low, high = facts["intervals"]["accuracy"]
    assert low <= facts["scores"]["accuracy"] <= high
    assert facts["speed"] > 0
    classifier = open_model(run / "model.int8.onnx")
    dataset = load_dataset(config)
    val = dataset.splits["val"]
    sets = classifier.card.calibration.prediction_sets(classifier.predict(dataset.images[val]))
    assert sets[np.arange(len(val)), dataset.labels[val]].mean() >= 0.9, "the threshold was fitted on its own answers"
    for name in ("report.md", "report.html"):
        assert "In eight bits" in (run / "report" / name).read_text()


def test_a_refused_eight_bit_file_does_not_cost_the_run(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """ONNX Runtime's quantiser stands for whatever fails there: the float32 model is published, and it is said why."""

    def fails(*_: object, **__: object) -> None:
        raise AttributeError("no such attribute of this operator")

    monkeypatch.setattr(graph, "quantize_static", fails)
    options = ["--model", "mlp", "--hidden", "8", "--image-size", "16", "--epochs", "1", "--name", "x"]
    assert main(["train", "--data", str(photos), "--out", str(tmp_path), *options, "--quantize", "int8"]) == 0
    assert (tmp_path / "latest").resolve() == tmp_path / "x"
    assert open_model(tmp_path / "latest" / "model.onnx").card.name == "x"
    assert not (tmp_path / "x" / "model.int8.onnx").exists()
    said = "There is no model.int8.onnx: ONNX Runtime cannot quantise the graph: no such attribute of this operator."
    assert f"warning: {said} model.onnx is published." in capsys.readouterr().out
    assert said in (tmp_path / "x" / "report" / "report.md").read_text()


def test_eight_bits_run_on_the_cpu_where_there_is_a_gpu(
    run: Path, int8: Path, dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """CUDA would compute them in float. Both files are compared on the CPU."""
    provider = cuda.Provider()
    cuda.install(monkeypatch, provider)
    assert open_model(run / "model.onnx").on_gpu
    assert not open_model(int8).on_gpu
    with pytest.raises(ModelRefused, match="a GPU is required, but eight-bit files run on the CPU"):
        open_model(int8, placement=Placement(on="cuda"))
    provider.sizes.clear()
    assert quantize(run / "model.onnx", tmp_path / "model.int8.onnx", dataset, least_agreement=0.99).published
    assert provider.sizes == []


def test_it_is_served(int8: Path, dataset: Dataset, photos: Path, tmp_path: Path) -> None:
    key = dataset.keys[dataset.splits["test"][0]]
    with serving(int8, BENTOML_HOME=str(tmp_path)) as address:
        answer = httpx.post(f"{address}/predict", files={"image": (photos / key).read_bytes()}).json()
    assert answer["model_version"].endswith("-int8")
    assert answer["label"] == dataset.classes[dataset.labels[dataset.splits["test"][0]]]
