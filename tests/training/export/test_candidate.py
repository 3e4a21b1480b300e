import copy
import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from scipy.special import softmax

from serving.contract.card.model_card import ModelCard
from serving.contract.model import open_model
from training.data.dataset import Dataset
from training.errors import ExportRefused
from training.export.candidate import candidate, export
from training.export.parity import ExpectedOutputs
from training.metrics.evaluation import compute_logits


def refusal(model: torch.nn.Sequential, card: ModelCard, dataset: Dataset, folder: Path) -> str:
    with pytest.raises(ExportRefused) as error:
        export(
            model,
            card,
            dataset,
            ExpectedOutputs(probabilities=softmax(compute_logits(model, dataset, "test"), axis=1)),
            folder / "model.onnx",
        )
    assert list(folder.iterdir()) == [], "nothing is published and nothing is left"
    return str(error.value)


def test_a_proved_file_is_published(run: Path, model: torch.nn.Sequential, dataset: Dataset, tmp_path: Path) -> None:
    parity = export(
        model,
        open_model(run / "model.onnx").card,
        dataset,
        ExpectedOutputs(probabilities=softmax(compute_logits(model, dataset, "test"), axis=1)),
        tmp_path / "model.onnx",
    )
    assert not parity.faults
    assert parity.images == len(dataset.splits["test"]) == len(parity.served)
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]


def test_pixels_that_are_not_the_evaluated_ones_are_refused(
    run: Path, model: torch.nn.Sequential, dataset: Dataset, tmp_path: Path
) -> None:
    images = dataset.images.copy()
    images[dataset.splits["test"][0], 0, 0, 0] ^= 1
    card = open_model(run / "model.onnx").card
    message = refusal(model, card, dataclasses.replace(dataset, images=images), tmp_path)
    assert message.count("pixels equal in 91.7% of the images") == 2, "of both ways"


def test_another_normalisation_in_the_card_is_refused(
    run: Path, model: torch.nn.Sequential, dataset: Dataset, tmp_path: Path
) -> None:
    card = open_model(run / "model.onnx").card
    nudged = dataclasses.replace(card.normalization, mean=(0.4850001, 0.456, 0.406))
    message = refusal(model, dataclasses.replace(card, normalization=nudged), dataset, tmp_path)
    assert "first layer against A.Normalize, mode standard: of 768 values" in message


def test_weights_that_the_goldens_do_not_know_are_refused(
    run: Path, model: torch.nn.Sequential, dataset: Dataset, tmp_path: Path
) -> None:
    other: Any = copy.deepcopy(model)
    with torch.no_grad():
        other[2][-1].bias[0] += 3
    message = refusal(other, open_model(run / "model.onnx").card, dataset, tmp_path)
    assert "the service would refuse the file: " in message
    assert ": a probability differs by" in message


def test_a_candidate_does_not_outlive_an_error(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="full"), candidate(tmp_path / "model.onnx", b"x") as file:  # noqa: PT012
        assert file.read_bytes() == b"x"
        assert file.parent == tmp_path
        raise OSError("full")
    assert list(tmp_path.iterdir()) == []
