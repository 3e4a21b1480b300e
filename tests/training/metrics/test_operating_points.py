import dataclasses
import unicodedata

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from serving.contract.card.decisions import OperatingPoint
from tests.support.simulated_models import CLASSES, split
from training.errors import ConfigError
from training.metrics import operating_points
from training.metrics.classification import ScoredImages
from training.metrics.operating_points import Rates, TargetScore, check_classes, choose, parse, parse_all, threshold_for

OF_CLASS = np.array([0.9, 0.8, 0.8, 0.6, 0.5, 0.5, 0.3, 0.2], np.float32)
IS_CLASS = np.array([1, 1, 0, 1, 0, 1, 0, 0], bool)


@pytest.mark.parametrize(
    ("score", "target", "low", "high"),
    [
        ("sensitivity", 0.25, 0.8, 0.9),  # one of four is at 0.9
        ("sensitivity", 0.26, 0.6, 0.8),  # the tie at 0.8 is decided yes together
        ("sensitivity", 0.75, 0.5, 0.6),
        ("sensitivity", 0.76, 0.3, 0.5),
        ("specificity", 0.75, 0.5, 0.6),  # with the tie at 0.5 two of four others would be decided yes
        ("specificity", 0.76, 0.8, 0.9),
        ("specificity", 0.5, 0.3, 0.5),
        ("precision", 0.75, 0.5, 0.6),  # 1, 2/3, 3/4, 4/6, 4/7, 4/8: the last that is enough
        ("precision", 0.76, 0.8, 0.9),
    ],
)
def test_thresholds_by_hand(score: str, target: float, low: float, high: float) -> None:
    found = threshold_for(TargetScore("a", score, target), OF_CLASS, IS_CLASS)  # type: ignore[arg-type]
    assert found is not None
    assert low < found < high


def test_a_share_that_floating_point_rounds_up_needs_no_image_more() -> None:
    """0.55 * 20 is 11.000000000000002."""
    values = np.linspace(0.9, 0.1, 20, dtype=np.float32)
    found = threshold_for(
        TargetScore("a", "sensitivity", 0.55), np.r_[values, [0.05]].astype(np.float32), np.arange(21) < 20
    )
    assert found is not None
    assert (values >= found).sum() == 11


def test_what_cannot_be_reached_has_no_threshold_and_a_certain_other_is_never_decided_yes() -> None:
    of_class, is_class = np.array([1, 0.5], np.float32), np.array([False, True])
    assert threshold_for(TargetScore("a", "precision", 0.9), of_class, is_class) is None
    assert threshold_for(TargetScore("a", "specificity", 0.9), of_class, is_class) == 1.5
    assert threshold_for(TargetScore("a", "sensitivity", 0.9), np.zeros(2, np.float32), is_class) == 0


@given(
    st.lists(st.tuples(st.integers(0, 20), st.booleans()), min_size=2, max_size=30),
    st.sampled_from(["sensitivity", "specificity", "precision"]),
    st.floats(0.01, 0.99),
)
def test_no_other_threshold_reaches_the_target_at_less_loss(
    images: list[tuple[int, bool]], score: str, target: float
) -> None:
    """Against all thresholds that decide differently, tried one after the other."""
    of_class = np.array([value / 20 for value, _ in images], np.float32)
    is_class = np.array([of for _, of in images])
    if is_class.all() or not is_class.any():
        return
    found = threshold_for(TargetScore("a", score, target), of_class, is_class)  # type: ignore[arg-type]

    def reaches(threshold: float) -> bool:
        yes = of_class.astype(float) >= threshold
        share = {
            "sensitivity": yes[is_class].mean(),
            "specificity": 1 - yes[~is_class].mean(),
            "precision": is_class[yes].mean() if yes.any() else -1,
        }[score]
        return bool(share >= target - 1e-12)

    every = sorted({float(value) for value in of_class} | {1.1})
    good = [threshold for threshold in every if reaches(threshold)]
    if not good:
        assert found is None
        return
    best = max(good) if score == "sensitivity" else min(good)
    assert found is not None
    assert np.array_equal(of_class.astype(float) >= found, of_class.astype(float) >= best)


@pytest.mark.parametrize(
    "text", ["melanoma", "melanoma:recall=0.9", "melanoma:sensitivity=1", "a:sensitivity=0", ":precision=0.5", "a:b=x"]
)
def test_what_is_no_demand_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="expected CLASS:SCORE=VALUE, SCORE one of sensitivity, specificity"):
        parse(text)


def test_a_class_may_hold_what_separates() -> None:
    assert parse("a:b=c:specificity=0.5") == ("a:b=c", "specificity", 0.5)


def test_a_name_is_the_same_however_its_accents_are_typed() -> None:
    """As folders and manifests are read: macOS gives the letter and the accent apart."""
    apart, together = (unicodedata.normalize(form, "Nävus") for form in ("NFD", "NFC"))
    assert parse(f"{apart}:specificity=0.5").label == together


def test_targets_for_what_is_not_there_are_refused() -> None:
    with pytest.raises(ConfigError, match="each class once, got a several times"):
        parse_all(["a:sensitivity=0.9", "b:sensitivity=0.9", "a:precision=0.5"])
    labels = np.array([0, 0, 1])
    check_classes(["a:sensitivity=0.9"], CLASSES, labels, "skin")
    with pytest.raises(ConfigError, match="there is no class 'd'; there are a, b, c"):
        check_classes(["d:sensitivity=0.9"], CLASSES, labels, "skin")
    with pytest.raises(ConfigError, match="the validation split of skin has 0 images of c and 3 others"):
        check_classes(["c:sensitivity=0.9"], CLASSES, labels, "skin")


def measured(seed: int, images: int, repeat: int = 1) -> tuple[OperatingPoint, operating_points.MeasuredPoint]:
    labels, probabilities = split(seed, images)
    [point] = choose([TargetScore("b", "sensitivity", 0.9)], CLASSES, labels, probabilities)
    copies = np.repeat(np.arange(images), repeat)
    scored = ScoredImages(labels=labels[copies], probabilities=probabilities[copies], components=copies)
    return point, operating_points.measure(point, CLASSES, scored, scored)


def test_rates_are_shares_with_intervals_that_count_groups() -> None:
    point, found = measured(0, 400)
    labels, probabilities = split(0, 400)
    yes = probabilities[:, 1] >= point.threshold
    rates = found.rates
    assert rates.sensitivity.value == yes[labels == 1].mean() >= 0.9
    assert rates.specificity.value == (~yes)[labels != 1].mean()
    assert rates.precision.value == (labels[yes] == 1).mean()
    assert found.by_label.sensitivity.value == (probabilities.argmax(1) == 1)[labels == 1].mean()
    for rate in (rates.sensitivity, rates.specificity, rates.precision):
        assert rate.interval is not None
        assert rate.value is not None
        assert rate.interval[0] < rate.value < rate.interval[1]
        wilson = binomtest(round(rate.value * rate.images), rate.images).proportion_ci(method="wilson")
        assert rate.interval == pytest.approx((wilson.low, wilson.high), abs=0.02)
    _, repeated = measured(0, 400, repeat=10)
    assert repeated.rates.specificity.interval == pytest.approx(rates.specificity.interval)
    count = int(yes[labels == 1].sum()), int((labels == 1).sum()), int(yes[labels != 1].sum()), int((labels != 1).sum())
    assert found.cost == "Decided yes are {} of the {} images of b, and {} of the {} others.".format(*count)


def test_a_test_split_that_excludes_the_target_is_noticed() -> None:
    _, found = measured(0, 400)
    assert not found.misses_target
    short = dataclasses.replace(found.rates.sensitivity, value=0.7, interval=(0.6, 0.8))
    rates: Rates = dataclasses.replace(found.rates, sensitivity=short)
    assert dataclasses.replace(found, rates=rates).misses_target
    labels, probabilities = split(0, 50)
    none = operating_points.measure(
        OperatingPoint(label="b", score="sensitivity", target=0.9, threshold=1.5),
        CLASSES,
        ScoredImages(labels=labels, probabilities=probabilities, components=np.arange(50)),
        None,
    )
    assert (none.validation, none.rates.precision.value, none.rates.precision.interval) == (None, None, None)
    assert none.cost.startswith("Decided yes are 0 of the ")
