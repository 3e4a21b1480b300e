import pytest

from training.metrics.correction import holm


def test_holm_s_correction_is_that_of_three_by_hand_and_skips_what_was_not_tested() -> None:
    """0.01 times 3, 0.03 times 2, and for 0.04 no less than the one before."""
    assert holm([0.03, None, 0.01, 0.04]) == [pytest.approx(0.06), None, pytest.approx(0.03), pytest.approx(0.06)]
    assert holm([0.6, 0.7]) == [1, 1]
    assert holm([]) == []
