import math
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import norm

from serving.contract.model import Answers
from training.data.cache import Cache
from training.data.dataset import load_dataset
from training.data.formats import find_source
from training.data.selection import gather_images
from training.errors import DataError
from training.folds.command import check_complete
from training.folds.results import check_images, collect_answers, corrected_interval, fold_means
from training.metrics.classification import score
from training.options.config import TrainConfig
from training.promotion.champion import card_of
from training.report.predictions import write_predictions


def test_images_that_came_later_or_are_answered_twice_are_refused(photos: Path, tmp_path: Path) -> None:
    """As where one of the folds was made again by itself, after images were added: it has divided other data."""

    dataset = load_dataset(TrainConfig(data=photos, image_size=16, out=tmp_path))

    def answered(name: str, indices: np.ndarray) -> Path:
        (tmp_path / name).mkdir(exist_ok=True)
        certain = np.eye(len(dataset.classes), dtype=np.float32)[dataset.labels[indices]]
        write_predictions(tmp_path / name / "predictions.csv", dataset, indices, Answers(certain, None), None)
        return tmp_path / name

    every = np.arange(len(dataset.keys))
    first, second = answered("1-of-2", every[::2]), answered("2-of-2", every[1::2])
    answers = collect_answers([first, second], dataset)
    assert answers.indices.tolist() == every.tolist()
    check_complete(answers, dataset.image_set, "drop")
    with pytest.raises(DataError, match=r"(?s)images that no fold answers.*: 1\n  " + re.escape(dataset.keys[1])):
        check_complete(collect_answers([first, answered("2-of-2", every[3::2])], dataset), dataset.image_set, "drop")
    with pytest.raises(DataError, match=re.escape(dataset.keys[2]) + " is answered by two of 2 folds"):
        collect_answers([first, answered("2-of-2", every[1:3])], dataset)


def test_a_fold_of_other_pixels_or_labels_under_the_same_names_is_refused(run: Path, photos: Path) -> None:
    images, _ = gather_images(find_source(photos, Cache()), Cache(), [card_of(run / "model.onnx")])
    check_images([run], images.image_set)
    swapped = [images.image_set.files[1], images.image_set.files[0], *images.image_set.files[2:]]
    labels = np.roll(images.labels, 1)
    for changed in (replace(images.image_set, files=swapped), replace(images.image_set, labels=labels)):
        with pytest.raises(DataError, match="images or labels have changed since it was trained"):
            check_images([run], changed)


def test_an_interval_worked_by_hand() -> None:
    """Values 0.7, 0.8, 0.9: variance 0.01, times 1/3 + 1/2; Student's 97.5 % with 2 degrees of freedom is 4.3027."""
    half = 4.302653 * math.sqrt(0.01 * (1 / 3 + 1 / 2))
    assert corrected_interval([0.7, 0.8, 0.9]) == pytest.approx((0.8 - half, 0.8 + half), abs=1e-6)


def test_it_holds_where_the_naive_interval_is_too_narrow() -> None:
    """Folds share training images, so their scores are correlated: 1/k of n_test/(n_train + n_test) of the variance."""
    rng, k, truth = np.random.default_rng(0), 5, 0.8
    shared = math.sqrt(0.2)  # correlation of two folds: Nadeau and Bengio's n_test / (n_test + n_train)
    held = naive = 0
    for _ in range(4_000):
        common = rng.normal()
        values = truth + 0.02 * (shared * common + math.sqrt(1 - 0.2) * rng.normal(size=k))
        low, high = corrected_interval(values.tolist())
        held += low <= truth <= high
        half = norm.ppf(0.975) * values.std(ddof=1) / math.sqrt(k)
        naive += values.mean() - half <= truth <= values.mean() + half
    assert 0.94 <= held / 4_000 <= 0.96
    assert naive / 4_000 < 0.85


def test_a_score_that_a_fold_lacks_has_no_mean() -> None:
    """A fold with images of one class has no ROC AUC."""
    probabilities = np.array([[0.9, 0.1], [0.2, 0.8]], np.float32)
    both = score(np.array([0, 1]), probabilities, ("a", "b"))
    one = score(np.array([0, 0]), probabilities, ("a", "b"))
    means = fold_means([both, one])
    assert means["roc_auc"] is None
    assert means["accuracy"] is not None
    assert means["accuracy"].mean == 0.75
