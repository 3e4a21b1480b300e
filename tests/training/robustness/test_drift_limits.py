import numpy as np
import pytest

from serving.contract.drift import LIMIT, NO_DRIFT, histograms
from training.robustness.drift_limits import (
    Effect,
    Step,
    distances,
    drift_limits,
    false_alarms,
    feature_rows,
    setting,
    unnoticed,
)


def step(change: str, harmful: bool | None, **stability: float) -> Step:
    """None: not decided."""
    effects: dict[bool | None, Effect] = {True: "harmful", False: "harmless", None: "undecided"}
    return Step(change=change, effect=effects[harmful], stability=stability)


def test_the_limit_is_the_largest_index_that_was_harmless() -> None:
    steps = [
        step("darker", False, brightness=0.05),
        step("darker", False, brightness=0.6),
        step("darker", True, brightness=1.4),
        step("brighter", False, brightness=0.314),
        step("brighter", True, brightness=0.9),
    ]
    limits = drift_limits(steps)
    assert limits == {"brightness": 0.6}, "a darkening that is borne is no reason for an alert"
    assert unnoticed(steps, limits) == false_alarms(steps, limits) == []


def test_harm_is_noticed_at_the_price_of_false_alarms() -> None:
    steps = [
        step("darker", False, brightness=0.6, label=0.0),
        step("brighter", False, brightness=0.314, label=0.0),
        step("brighter", True, brightness=0.5, label=0.05),
    ]
    limits = drift_limits(steps)
    assert limits == {"brightness": 0.314, "label": LIMIT}
    assert unnoticed(steps, limits) == []
    assert false_alarms(steps, limits) == ["darker"]


def test_harm_at_the_mildest_strength_leaves_the_least_limit() -> None:
    steps = [step("darker", True, brightness=0.2), step("darker", True, brightness=0.8)]
    assert drift_limits(steps) == {"brightness": NO_DRIFT}
    assert unnoticed(steps, drift_limits(steps)) == []


def test_another_feature_may_notice_what_one_does_not() -> None:
    steps = [
        step("darker", False, brightness=3.0, confidence=0.02),
        step("noise", False, brightness=0.1, confidence=0.3),
        step("noise", True, brightness=0.9, confidence=2.0),
    ]
    assert drift_limits(steps) == {"brightness": 3.0, "confidence": 0.3}
    assert unnoticed(steps, drift_limits(steps)) == []


def test_a_feature_that_no_harm_moves_has_the_usual_limit_or_what_was_harmless() -> None:
    harmless = [step("darker", False, brightness=0.2), step("blur", True, brightness=0.01)]
    assert drift_limits(harmless) == {"brightness": LIMIT}
    assert unnoticed(harmless, {"brightness": LIMIT}) == ["blur"], "no feature would notice it"
    assert drift_limits([step("darker", False, brightness=2.341)]) == {"brightness": 2.341}
    assert drift_limits([step("darker", False, brightness=2.34101)]) == {"brightness": 2.3411}, "rounded up"
    near = [step("darker", False, brightness=0.301), step("darker", True, brightness=0.305)]
    assert unnoticed(near, drift_limits(near)) == []


def test_without_indices_there_are_no_limits() -> None:
    assert drift_limits([step("darker", True)]) == {}


def test_what_is_not_decided_widens_no_limit() -> None:
    steps = [
        step("darker", False, brightness=0.3),
        step("darker", None, brightness=0.6),
        step("darker", True, brightness=1.4),
        step("brighter", None, brightness=2.0),
    ]
    assert drift_limits(steps) == {"brightness": 0.3}
    assert false_alarms(steps, {"brightness": 0.3}) == [], "an alert for what may do harm is none"


def test_a_later_harmless_strength_does_not_count() -> None:
    """Harm begins where it is first measured; what comes after it may be luck."""
    steps = [step("turned", False, label=0.02), step("turned", True, label=0.2), step("turned", False, label=0.15)]
    assert drift_limits(steps) == {"label": NO_DRIFT}


def test_the_indices_are_those_of_the_service() -> None:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 200, (500, 12, 12, 3), np.uint8)
    probabilities = rng.dirichlet((1, 1), 500).astype(np.float32)
    rows = feature_rows(images, probabilities)
    reference = histograms(rows)
    same = distances(reference, rows)
    assert set(same) == {"brightness", "contrast", "label", "confidence"}, "no change alters width and height"
    assert max(same.values()) == 0
    brighter = distances(reference, feature_rows(images + np.uint8(20), probabilities))
    assert brighter["brightness"] > 1
    assert brighter["contrast"] < 0.1
    assert distances(reference, rows[:99]) == {}, "too few images for any bin"


def test_the_setting_is_read_by_the_service(monkeypatch: pytest.MonkeyPatch) -> None:
    from serving.settings import Settings

    monkeypatch.setenv("TWINLENS_DRIFT_LIMITS", setting("1cc9e7341f50", {"brightness": 0.31, "label": 0.1}))
    limits = Settings.from_env().drift_limits
    assert limits.version == "1cc9e7341f50"
    assert limits.by_feature == {"brightness": 0.31, "label": 0.1}
