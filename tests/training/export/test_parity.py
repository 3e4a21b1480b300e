import copy
import dataclasses
import json
import re
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
import pytest
import torch
from scipy.special import softmax

from serving.contract.card.model_card import NormalizationMode
from serving.contract.decode import Fit, Preprocessing, decode
from serving.contract.model import open_model
from serving.contract.session import CPU, CUDA
from tests.support import cuda
from training.data.augmentation import pipeline
from training.data.dataset import Dataset
from training.distributed import ALONE
from training.errors import ExportRefused
from training.export.candidate import export
from training.export.card import build_card
from training.export.goldens import goldens
from training.export.onnx import serialize
from training.export.parity import ExpectedOutputs, Parity, prove
from training.export.ways import check_way
from training.metrics.evaluation import compute_logits, evaluate_best
from training.options.choices import Activation
from training.options.config import TrainConfig
from training.signals import Interruption
from training.train import load, start, train


def proved(data: Path, folder: Path, **options: Any) -> tuple[Parity, Preprocessing]:
    """The proof of a network of random weights, with the statistics of one batch: no training, no report."""
    small: dict[str, Any] = {"hidden": (16,)} if options["model"] == "mlp" else {"width": 8}
    config = TrainConfig(data=data, out=folder, name="x", **({"image_size": 20} | small | options))
    context = load(config, torch.device("cpu"), ALONE, Interruption())
    dataset, model = context.dataset, start(context)
    with torch.inference_mode():
        model.train()(torch.tensor(dataset.images[:16]))
    evaluation = evaluate_best(model, dataset, context.config)
    card = build_card(model, context, evaluation, None, None)
    return export(model, card, dataset, ExpectedOutputs.of(evaluation), folder / "model.onnx"), card.preprocessing


@pytest.mark.parametrize("mode", ["standard", "image", "image_per_channel", "min_max", "min_max_per_channel"])
@pytest.mark.parametrize("kind", ["mlp", "cnn"])
def test_every_mode_and_model_holds_in_both_runtimes(
    photos: Path, tmp_path: Path, kind: Literal["mlp", "cnn"], mode: NormalizationMode
) -> None:
    parity, _ = proved(photos, tmp_path, model=kind, normalization=mode)
    normalization = parity.normalization
    assert normalization.equal_in_torch == normalization.equal_in_onnx == normalization.compared
    if mode == "standard":
        assert normalization.compared == 768
    for way in parity.ways:
        assert way.pixels_equal == 1
        assert way.labels_differ == 0
        assert way.largest_difference <= 1e-5


@pytest.mark.parametrize("fit", ["pad", "crop"])
def test_a_picture_that_keeps_its_shape_passes_the_proof(wide: Path, tmp_path: Path, fit: Fit) -> None:
    parity, preprocessing = proved(wide, tmp_path, model="mlp", fit=fit, fill=9)
    assert [way.pixels_equal for way in parity.ways] == [1, 1]
    assert preprocessing == Preprocessing(height=20, width=20, channels=3, interpolation="area", fit=fit, fill=9)


@pytest.fixture
def wide(photos: Path, tmp_path: Path) -> Path:
    """The photographs, each with another width."""
    for number, path in enumerate(sorted(photos.rglob("*.png"))):
        target = tmp_path / "wide" / path.relative_to(photos)
        target.parent.mkdir(parents=True, exist_ok=True)
        image = decode(path.read_bytes())
        cv2.imwrite(str(target), cv2.resize(image, (20 + number % 50, 40)))
    return tmp_path / "wide"


@pytest.mark.parametrize("activation", ["leaky_relu", "gelu", "tanh", "sigmoid"])
@pytest.mark.parametrize("kind", ["mlp", "cnn"])
def test_every_activation_passes_the_proof(
    photos: Path, tmp_path: Path, kind: Literal["mlp", "cnn"], activation: Activation
) -> None:
    """With batch normalisation in the MLP and without it in the CNN, which the others do not have."""
    parity, _ = proved(photos, tmp_path, model=kind, activation=activation, batch_norm=kind == "mlp")
    assert all(way.largest_difference <= 1e-5 for way in parity.ways)


@pytest.mark.parametrize("side", [28, 50, 128, 224])
def test_every_size_passes_the_proof(photos: Path, tmp_path: Path, side: int) -> None:
    parity, preprocessing = proved(photos, tmp_path, model="cnn", image_size=side)
    assert all(way.largest_difference <= 1e-5 for way in parity.ways)
    assert preprocessing.height == side


def test_gray_is_768_divided_by_three(photos: Path, tmp_path: Path) -> None:
    parity, preprocessing = proved(photos, tmp_path, model="cnn", channels=1)
    assert parity.normalization.equal_in_onnx == parity.normalization.compared == 256
    assert preprocessing.channels == 1


def test_a_file_with_other_weights_is_refused(
    run: Path, model: torch.nn.Sequential, dataset: Dataset, tmp_path: Path
) -> None:
    """Its goldens are its own, so the service would take it; it is not what was evaluated."""
    other: Any = copy.deepcopy(model)
    with torch.no_grad():
        other[2][-1].bias[0] += 3
    card = dataclasses.replace(open_model(run / "model.onnx").card, goldens=goldens(other, dataset.preprocessing))
    (tmp_path / "model.onnx").write_bytes(serialize(other, card))
    with pytest.raises(ExportRefused) as error:
        prove(
            model,
            tmp_path / "model.onnx",
            dataset,
            ExpectedOutputs(probabilities=softmax(compute_logits(model, dataset, "test"), axis=1)),
        )
    [line] = str(error.value).splitlines()
    assert "service's loader" in line, "the other checks hold"
    assert re.search(r"pixels equal in 100.0% of the images, \d+ labels differ, .* 0\.\d+ \(at most 0.0001\)", line)


@pytest.mark.parametrize(("kernels", "provider"), [(True, CUDA), (False, CPU)])
def test_a_run_is_proved_on_the_gpu_or_where_it_has_no_kernels_on_the_cpu(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kernels: bool, provider: str
) -> None:
    """As on a B200, for which torch has kernels and ONNX Runtime has none; here torch trains on the CPU."""
    card = cuda.Provider(fails=lambda images: None if kernels else cuda.NO_KERNEL)
    cuda.install(monkeypatch, card)
    options: dict[str, Any] = {"model": "mlp", "hidden": (8,), "image_size": 16, "epochs": 1, "device": "cpu"}
    folder = train(TrainConfig(data=photos, out=tmp_path, name="x", **options))
    assert (tmp_path / "latest").resolve() == folder
    served = json.loads((folder / "report" / "report.json").read_text())["parity"]["comparisons"][-1]["way"]
    assert served == f"model.onnx in the service's loader ({provider})"
    assert (max(card.sizes) > 1) is kernels


def test_a_label_may_differ_only_where_two_are_equal_within_the_tolerance() -> None:
    """Another device may turn a lead of 5e-5 round. A lead of 1.5e-4 may not turn, although no value is off by 1e-4."""
    evaluated = np.array([[0.4, 0.4 - 5e-5, 0.2], [0.5, 0.49985, 0.0], [0.2, 0.3, 0.5]], np.float32)
    recomputed = np.array([[0.4 - 5e-5, 0.4, 0.2], [0.49992, 0.49993, 0.0], [0.2, 0.3, 0.5]], np.float32)
    tied = check_way("x", 1, evaluated[[0, 2]], recomputed[[0, 2]])
    assert (tied.labels_differ, tied.ties, tied.holds) == (0, 1, True)
    apart = check_way("x", 1, evaluated, recomputed)
    assert (apart.labels_differ, apart.ties, apart.holds) == (1, 1, False)
    assert apart.largest_difference < 1e-4


def test_the_reference_pipeline_is_albumentations_alone(dataset: Dataset, run: Path) -> None:
    card = open_model(run / "model.onnx").card
    names = [type(step).__name__ for step in pipeline.reference(dataset.preprocessing, card.normalization).transforms]
    assert names == ["Resize", "Normalize", "ToTensorV2"]
