import unicodedata
from pathlib import Path

import numpy as np
import pytest

from serving.contract.card.decisions import Costs
from training.errors import ConfigError
from training.metrics.classification import ScoredImages
from training.metrics.costs import measure, read, write
from training.options.config import TrainConfig
from training.train import train

CLASSES = ("benign", "melanoma")
MATRIX = ",benign,melanoma,refer\nmelanoma,10,0,0.5\nbenign,0,1,0.3\n"
COSTS = Costs(actions=("benign", "melanoma", "refer"), matrix=((0.0, 1.0, 0.3), (10.0, 0.0, 0.5)))


def test_a_case_worked_by_hand() -> None:
    """10 % melanoma: benign costs 1.0, melanoma 0.9, refer 0.32. 1 %: 0.1, 0.99, 0.302. 80 %: 8, 0.2, 0.46."""
    probabilities = np.array([[0.9, 0.1], [0.99, 0.01], [0.2, 0.8]])
    assert COSTS.expected(probabilities) == pytest.approx(
        np.array([[1, 0.9, 0.32], [0.1, 0.99, 0.302], [8, 0.2, 0.46]]), abs=1e-6
    )
    assert COSTS.least(probabilities).tolist() == [2, 0, 1]
    # True are melanoma, benign, benign: least pays 0.5 + 0 + 1, the labels benign, benign, melanoma 10 + 0 + 1.
    scored = ScoredImages(
        labels=np.array([1, 0, 0]), probabilities=probabilities.astype(np.float32), components=np.arange(3)
    )
    measured = measure(COSTS, CLASSES, scored, COSTS.least(probabilities))
    assert (measured.least.value, measured.by_label.value) == pytest.approx((0.5, 11 / 3))
    assert measured.difference.value == pytest.approx(0.5 - 11 / 3)
    assert measured.actions == {"benign": 1, "melanoma": 1, "refer": 1}
    assert measured.difference.interval[0] <= measured.difference.value <= measured.difference.interval[1]


def test_costs_of_right_and_wrong_choose_the_most_probable_class() -> None:
    """With 0 and 1 the least cost is the label's, and the difference has no spread."""
    rng = np.random.default_rng(0)
    probabilities = rng.dirichlet([1, 1, 1], 300)
    zero_one = Costs(actions=tuple("abc"), matrix=((0.0, 1.0, 1.0), (1.0, 0.0, 1.0), (1.0, 1.0, 0.0)))
    assert np.array_equal(zero_one.least(probabilities), probabilities.argmax(1))
    labels = rng.integers(0, 3, 300)
    scored = ScoredImages(labels=labels, probabilities=probabilities.astype(np.float32), components=np.arange(300))
    measured = measure(zero_one, tuple("abc"), scored, zero_one.least(probabilities))
    assert measured.difference.interval == (0, 0)
    assert measured.by_label.value == pytest.approx((probabilities.argmax(1) != labels).mean())


def test_calibrated_answers_of_least_cost_are_the_cheapest_of_all_thresholds() -> None:
    """Labels drawn by the probabilities themselves: no other threshold on melanoma costs less on 200,000 images."""
    rng = np.random.default_rng(0)
    melanoma = rng.random(200_000)
    labels = (rng.random(200_000) < melanoma).astype(np.int64)
    two = Costs(actions=CLASSES, matrix=((0.0, 1.0), (4.0, 0.0)))
    probabilities = np.stack([1 - melanoma, melanoma], 1)
    matrix = np.array(two.matrix)
    by_threshold = {t: matrix[labels, (melanoma >= t).astype(int)].mean() for t in np.arange(0.05, 1, 0.05).round(2)}
    assert min(by_threshold, key=lambda t: by_threshold[t]) == 0.2  # 1 / (1 + 4)
    assert matrix[labels, two.least(probabilities)].mean() == pytest.approx(by_threshold[0.2], abs=1e-3)


def test_a_file_is_read_in_the_order_of_the_classes_and_written_back(tmp_path: Path) -> None:
    (tmp_path / "costs.csv").write_text(MATRIX)
    assert read(tmp_path / "costs.csv", CLASSES) == COSTS
    write(tmp_path / "again.csv", COSTS, CLASSES)
    assert read(tmp_path / "again.csv", CLASSES) == COSTS
    apart, together = (unicodedata.normalize(form, "bénign") for form in ("NFD", "NFC"))
    (tmp_path / "costs.csv").write_text(MATRIX.replace("benign", apart), encoding="utf-8")
    assert read(tmp_path / "costs.csv", (together, CLASSES[1])).matrix == COSTS.matrix


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "no column of class benign, melanoma"),
        (",benign,refer\nbenign,0,1\nmelanoma,1,1\n", "no column of class melanoma; there are benign, refer"),
        (",benign,melanoma\nbenign,0,1\n", "no row of class melanoma; there are benign"),
        (MATRIX.replace("0.5", "-1"), "row melanoma, column refer: expected a number of 0 or more, got '-1'"),
        (MATRIX.replace("10", "nan"), "row melanoma, column benign: expected a number of 0 or more, got 'nan'"),
        (MATRIX.replace("0.3", "x"), "row benign, column refer: expected a number of 0 or more, got 'x'"),
        (MATRIX.replace("0.3", "inf"), "row benign, column refer: expected a number of 0 or more, got 'inf'"),
        (MATRIX.replace(",0.3", ""), "row benign has 2 costs for 3 columns"),
        (MATRIX + "naevus,0,0,0\n", "row naevus is no class; there are benign, melanoma"),
        (MATRIX + "benign,0,0,0\n", "row benign several times"),
        (MATRIX.replace("refer", "benign"), "column benign several times"),
    ],
)
def test_what_is_no_matrix_is_refused_with_row_and_column(text: str, expected: str, tmp_path: Path) -> None:
    (tmp_path / "costs.csv").write_text(text)
    with pytest.raises(ConfigError, match=expected):
        read(tmp_path / "costs.csv", CLASSES)


def test_a_file_that_is_not_there_is_refused_before_the_data_is_read(tmp_path: Path) -> None:
    config = TrainConfig(data=tmp_path / "no images", out=tmp_path, name="x", costs=tmp_path / "no.csv")
    with pytest.raises(ConfigError, match="not a CSV file that can be read"):
        train(config)
