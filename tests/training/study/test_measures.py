import math

import pytest

from tests.support.histories import epochs
from training.study.measures import best, chance, epochs_to, epochs_to_share, in_time, rising


@pytest.mark.parametrize(
    ("scores", "expected"),
    [
        ((0.5, 0.9, 1.0), 2.5),  # 0.95 lies half way between the second and the third
        ((0.95, 0.96, 1.0), 1.0),
        ((0.0, 1.0, 0.5, 1.0), 1.95),  # the first time counts
        ((0.1, 0.1, 0.1), None),  # a tenth is what guessing gives
        ((0.5, None, 0.6), None),
        ((), None),
    ],
)
def test_epochs_to_95_percent_of_the_final_score(scores: tuple[float | None, ...], expected: float | None) -> None:
    found = epochs_to_share(epochs(*scores), guessing=0.1)
    assert found == (expected if expected is None else pytest.approx(expected))


@pytest.mark.parametrize(
    ("scores", "expected"),
    [((0.5, 0.7, 0.9), 2.5), ((0.9, 0.1), 1.0), ((0.5, 0.7), None), ((0.5, None, 0.9), None), ((), None)],
)
def test_epochs_to_a_score_that_runs_have_in_common(scores: tuple[float | None, ...], expected: float | None) -> None:
    assert epochs_to(0.8, epochs(*scores)) == (expected if expected is None else pytest.approx(expected))


def test_the_score_is_that_of_the_exported_weights_also_within_a_time() -> None:
    history = epochs(0.3, 0.8, 0.6)
    assert best(history) == 0.8
    assert in_time(history, 2.0) == 0.3
    assert in_time(history, 3.9) == 0.3
    assert in_time(history, 100.0) == 0.8
    assert in_time(history, 1.0) is None


def test_a_share_of_a_log_loss_is_one_of_the_probability_of_the_true_class() -> None:
    """Losses of 1.0, 0.5 and 0.0 are probabilities of 0.37, 0.61 and 1; 0.95 lies between the last two."""
    found = epochs_to_share(rising(epochs(1.0, 0.5, 0.0), "log_loss"), guessing=0.1)
    assert found == pytest.approx(2 + (0.95 - math.exp(-0.5)) / (1 - math.exp(-0.5)))
    guesses = epochs(*[math.log(10)] * 3)
    assert epochs_to_share(rising(guesses, "log_loss"), chance("log_loss", 10)) is None
    assert epochs_to_share(rising(guesses, "balanced_accuracy"), chance("balanced_accuracy", 10)) == 1.0


def test_a_roc_auc_of_a_half_is_a_guess_with_any_number_of_classes() -> None:
    guessing = chance("roc_auc", 10)
    assert epochs_to_share(epochs(0.5, 0.52, 0.55), guessing) is None
    assert epochs_to_share(epochs(0.5, 0.9), guessing) == pytest.approx(1 + (0.95 * 0.9 - 0.5) / 0.4)
