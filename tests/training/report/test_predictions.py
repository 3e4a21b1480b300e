from pathlib import Path

import numpy as np

from serving.contract.model import Answers
from training.data.dataset import load_dataset
from training.options.config import TrainConfig
from training.report.predictions import read_predictions, write_predictions


def test_probabilities_are_read_as_they_were_written(photos: Path, tmp_path: Path) -> None:
    """Small ones, too: read as 0, the log loss of 4e-7 would be twice as large."""
    dataset = load_dataset(TrainConfig(data=photos, image_size=16, out=tmp_path))
    indices = dataset.splits["test"]
    probabilities = np.random.default_rng(0).dirichlet(np.full(len(dataset.classes), 0.05), len(indices))
    answers = probabilities.astype(np.float32)
    answers[0] = [4e-7, *np.full(len(dataset.classes) - 1, (1 - 4e-7) / (len(dataset.classes) - 1))]
    path = tmp_path / "predictions.csv"
    write_predictions(path, dataset, indices, Answers(answers, None), None)
    found = read_predictions(path, dataset.classes)
    assert found is not None
    assert (found.probabilities == answers).all()
    assert not found.leaks.any()
