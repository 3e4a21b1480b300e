import dataclasses
import json
from pathlib import Path

import cv2
import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from serving.contract.card import METADATA_KEY
from serving.contract.model import open_model
from training.config import TrainConfig
from training.data import augmentation
from training.data import dataset as data
from training.data.dataset import Dataset
from training.engine import checkpoint
from training.errors import ExportRefused
from training.export import onnx as export
from training.models import networks
from training.train import train

OPTIONS = {"model": "mlp", "hidden": (32,), "image_size": 24}


@pytest.fixture(scope="module")
def dataset(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return data.load(TrainConfig(data=photos, out=tmp_path_factory.mktemp("runs"), **OPTIONS))


@pytest.fixture
def model(run: Path, dataset: Dataset) -> torch.nn.Sequential:
    """The trained model of the tiny run, in torch."""
    card = open_model(run / "model.onnx").card
    built = networks.build(TrainConfig(**OPTIONS), dataset.preprocessing, card.normalization, len(card.classes))
    built.load_state_dict(checkpoint.load(run / "checkpoints" / "best.pt", torch.device("cpu"))["model"])
    return built


def test_the_file_is_one_file_with_a_pinned_opset_and_a_dynamic_batch(run: Path) -> None:
    graph = onnx.load(run / "model.onnx", load_external_data=False)
    assert {entry.domain: entry.version for entry in graph.opset_import} == {"": export.OPSET}
    assert not any(tensor.external_data for tensor in graph.graph.initializer)
    assert [entry.key for entry in graph.metadata_props] == [METADATA_KEY]
    [images], [probabilities] = graph.graph.input, graph.graph.output
    assert images.type.tensor_type.elem_type == onnx.TensorProto.UINT8
    assert [dim.dim_value for dim in images.type.tensor_type.shape.dim] == [0, 24, 24, 3]
    assert (images.name, probabilities.name) == ("images", "probabilities")
    assert list((run / ".").glob("*.onnx*")) == [run / "model.onnx"]


@pytest.mark.parametrize("mode", ["standard", "image", "image_per_channel", "min_max", "min_max_per_channel"])
@pytest.mark.parametrize("kind", ["mlp", "cnn"])
def test_every_mode_and_model_passes_the_gate_in_both_runtimes(
    photos: Path, tmp_path: Path, kind: str, mode: str
) -> None:
    config = TrainConfig(
        data=photos,
        out=tmp_path,
        name="x",
        model=kind,
        hidden=(16,),
        width=8,
        image_size=20,
        epochs=1,
        normalization=mode,
        augment="none",
    )
    report = json.loads((train(config) / "report" / "report.json").read_text())["parity"]
    assert report["held"]
    normalization = report["normalization"]
    assert normalization["equal_in_torch"] == normalization["equal_in_onnx"] == normalization["compared"]
    if mode == "standard":
        assert normalization["compared"] == 768
    for comparison in report["comparisons"]:
        assert comparison["pixels_equal"] == 1
        assert comparison["labels_differ"] == 0
        assert comparison["largest_difference"] <= 1e-5


@pytest.mark.parametrize("activation", ["leaky_relu", "gelu", "tanh", "sigmoid"])
@pytest.mark.parametrize("kind", ["mlp", "cnn"])
def test_every_activation_passes_the_gate(photos: Path, tmp_path: Path, kind: str, activation: str) -> None:
    """With batch normalisation in the MLP and without it in the CNN, which the others do not have."""
    config = TrainConfig(
        data=photos,
        out=tmp_path,
        name="x",
        model=kind,
        hidden=(16,),
        width=8,
        image_size=16,
        epochs=1,
        activation=activation,
        batch_norm=kind == "mlp",
        augment="none",
    )
    report = json.loads((train(config) / "report" / "report.json").read_text())["parity"]
    assert all(comparison["largest_difference"] <= 1e-5 for comparison in report["comparisons"])


@pytest.mark.parametrize("side", [28, 128, 224])
def test_every_size_passes_the_gate(photos: Path, tmp_path: Path, side: int) -> None:
    config = TrainConfig(
        data=photos, out=tmp_path, name="x", width=8, image_size=side, epochs=1, augment="none", batch_size=16
    )
    run = train(config)
    report = json.loads((run / "report" / "report.json").read_text())["parity"]
    assert all(comparison["largest_difference"] <= 1e-5 for comparison in report["comparisons"])
    assert open_model(run / "model.onnx").card.preprocessing.height == side


def test_gray_is_768_divided_by_three(photos: Path, tmp_path: Path) -> None:
    config = TrainConfig(
        data=photos, out=tmp_path, name="x", channels=1, width=8, image_size=20, epochs=1, augment="none"
    )
    run = train(config)
    parity = json.loads((run / "report" / "report.json").read_text())["parity"]
    assert parity["held"]
    assert parity["normalization"]["equal_in_onnx"] == parity["normalization"]["compared"] == 256
    assert open_model(run / "model.onnx").card.preprocessing.channels == 1


def refused(model: torch.nn.Sequential, dataset: Dataset, run: Path, tmp_path: Path, **card: object) -> str:
    changed = dataclasses.replace(open_model(run / "model.onnx").card, **card)
    with pytest.raises(ExportRefused) as error:
        export.export(model, changed, dataset, tmp_path / "model.onnx")
    assert list(tmp_path.iterdir()) == [], "nothing is published and nothing is left"
    return str(error.value)


def test_what_was_written_is_published(run: Path, model: torch.nn.Sequential, dataset: Dataset, tmp_path: Path) -> None:
    parity = export.export(model, open_model(run / "model.onnx").card, dataset, tmp_path / "model.onnx")
    assert not parity.faults
    assert parity.images == len(dataset.splits["test"]) == len(parity.served)
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]


@pytest.mark.parametrize("size", [1, 2, 7])
def test_answers_do_not_depend_on_the_batch(run: Path, model: torch.nn.Sequential, dataset: Dataset, size: int) -> None:
    classifier = open_model(run / "model.onnx")
    images = dataset.images[:64]
    served = np.concatenate([classifier.predict(images[start : start + size]) for start in range(0, 64, size)])
    model.append(networks.Temperature(classifier.card.calibration.temperature))
    assert np.abs(served - networks.predict(model, images)).max() <= 1e-6


def test_the_gate_notices_pixels_that_are_not_the_evaluated_ones(
    run: Path, model: torch.nn.Sequential, dataset: Dataset, tmp_path: Path
) -> None:
    images = dataset.images.copy()
    images[dataset.splits["test"][0], 0, 0, 0] ^= 1
    message = refused(model, dataclasses.replace(dataset, images=images), run, tmp_path)
    assert "pixels_equal=0.91" in message


def test_the_gate_notices_other_normalisation_in_the_card(
    run: Path, model: torch.nn.Sequential, dataset: Dataset, tmp_path: Path
) -> None:
    card = open_model(run / "model.onnx").card
    nudged = dataclasses.replace(card.normalization, mean=(0.4850001, 0.456, 0.406))
    message = refused(model, dataset, run, tmp_path, normalization=nudged)
    assert "NormalizationProof" in message


def test_the_gate_notices_weights_that_are_not_the_evaluated_ones(
    run: Path, model: torch.nn.Sequential, dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    graph = export._graph

    def with_a_wrong_weight(model, card):
        wrong = onnx.load_from_string(graph(model, card))
        bias = next(tensor for tensor in wrong.graph.initializer if tensor.dims == [3])
        values = onnx.numpy_helper.to_array(bias).copy()
        values[0] += 3
        bias.CopyFrom(onnx.numpy_helper.from_array(values, bias.name))
        return wrong.SerializeToString()

    monkeypatch.setattr(export, "_graph", with_a_wrong_weight)
    assert ": a probability differs" in refused(model, dataset, run, tmp_path)
    monkeypatch.setattr(export, "open_model", _without_goldens)
    assert "largest_difference=0." in refused(model, dataset, run, tmp_path)


def test_a_label_may_differ_only_where_two_are_equally_probable() -> None:
    evaluated = np.array([[0.4, 0.4 - 1e-6, 0.2], [0.5, 0.5 - 5e-5, 0.0], [0.2, 0.3, 0.5]], np.float32)
    answers = evaluated[:, [1, 0, 2]]
    tied = export._compare("x", 1, evaluated[[0, 2]], np.stack([answers[0], evaluated[2]]))
    assert (tied.labels_differ, tied.ties, tied.holds) == (0, 1, True)
    apart = export._compare("x", 1, evaluated[:2], answers[:2])
    assert (apart.labels_differ, apart.ties, apart.holds) == (1, 1, False)
    assert apart.largest_difference < 1e-4


def _without_goldens(path: Path, threads: int):
    from serving.contract import model as module

    session = module._session(path, path.read_bytes(), threads)
    card = module.ModelCard.from_json(session.get_modelmeta().custom_metadata_map[METADATA_KEY])
    return module.Classifier(path, session, card, module.Digest(""))


def test_goldens_hold_what_the_evaluated_model_says(run: Path, model: torch.nn.Sequential, dataset: Dataset) -> None:
    examples = export.goldens(model, dataset)
    session = onnxruntime.InferenceSession(run / "model.onnx", providers=["CPUExecutionProvider"])
    for example in examples:
        decoded = cv2.imdecode(np.frombuffer(example.image, np.uint8), cv2.IMREAD_COLOR_RGB)
        pixels = cv2.resize(decoded, (24, 24), interpolation=cv2.INTER_AREA)
        [probabilities] = session.run(None, {"images": pixels[None]})[0]
        assert np.abs(probabilities - np.float32(example.probabilities)).max() < 1e-5
    assert len({example.probabilities for example in examples}) > 1


def test_the_reference_pipeline_is_albumentations_alone(dataset: Dataset, run: Path) -> None:
    card = open_model(run / "model.onnx").card
    names = [
        type(step).__name__ for step in augmentation.reference(dataset.preprocessing, card.normalization).transforms
    ]
    assert names == ["Resize", "Normalize", "ToTensorV2"]
