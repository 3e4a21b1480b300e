import numpy as np
import pytest
from scipy.stats import chi2_contingency
from sklearn.metrics import balanced_accuracy_score

from serving.contract.card.decisions import Calibration
from tests.support.simulated_models import split
from training.metrics.classification import ScoredImages, expected_calibration_error
from training.metrics.slices import Slicing
from training.metrics.subgroups import Column, columns_by_score, permutation_p, subgroup_facts, subgroup_warnings

SETS = Calibration(temperature=1.0, level=0.9, threshold=0.2)


def sliced(name: str, codes: np.ndarray, values: tuple[str, ...] = ("A", "B")) -> Slicing:
    return Slicing(column=name, values=values, codes=codes.astype(np.int64), binned=False)


def scored(seed: int = 0, images: int = 300) -> ScoredImages:
    labels, probabilities = split(seed, images)
    return ScoredImages(labels=labels, probabilities=probabilities, components=np.arange(images))


def measured(images: ScoredImages, *slicings: Slicing, calibration: Calibration = SETS) -> list[Column]:
    sets = None if calibration.threshold is None else calibration.prediction_sets(images.probabilities)
    return columns_by_score(slicings, np.arange(len(images.labels)), images, sets)


def test_the_scores_of_a_value_are_those_of_its_images() -> None:
    images = scored()
    codes = np.arange(300) % 3
    [column] = measured(images, sliced("site", codes, ("A", "B", "C")))
    predicted = images.probabilities.argmax(1)
    for code, found in enumerate(column.subgroups):
        mine = codes == code
        assert found.accuracy.value == (predicted == images.labels)[mine].mean()
        assert found.accuracy.images == 100
        assert found.balanced_accuracy == pytest.approx(balanced_accuracy_score(images.labels[mine], predicted[mine]))
        error = expected_calibration_error(images.labels[mine], images.probabilities[mine])
        assert found.expected_calibration_error == error
        sets = SETS.prediction_sets(images.probabilities)[mine]
        assert found.coverage is not None
        assert found.coverage.value == sets[np.arange(100), images.labels[mine]].mean()
        for value, interval in (
            (found.accuracy.value, found.accuracy.interval),
            (found.balanced_accuracy, found.balanced_accuracy_interval),
            (found.coverage.value, found.coverage.interval),
        ):
            assert interval is not None
            assert value is not None
            assert interval[0] < value < interval[1]


def test_a_planted_subgroup_is_found_beside_columns_that_say_nothing() -> None:
    images = scored()
    rng = np.random.default_rng(1)
    site = rng.integers(0, 2, 300)
    probabilities = images.probabilities.copy()
    probabilities[site == 1] = rng.permuted(probabilities[site == 1], axis=1)
    planted = ScoredImages(labels=images.labels, probabilities=probabilities, components=images.components)
    clean = [sliced(f"clean {number}", rng.integers(0, 3, 300), ("x", "y", "z")) for number in range(6)]
    columns = measured(planted, sliced("site", site), *clean)
    [warning] = subgroup_warnings(columns)
    assert warning.startswith("Accuracy differs by site: ")
    assert " images of B against " in warning
    gap = columns[0].gap
    assert gap is not None
    assert (gap.lowest, gap.highest) == ("B", "A")
    assert gap.corrected_p == pytest.approx(7 * gap.p)


@pytest.mark.long
def test_without_a_difference_one_study_in_twenty_at_most_says_there_is_one() -> None:
    rng = np.random.default_rng(0)
    alarms = 0
    for seed in range(40):
        columns = [sliced(str(number), rng.integers(0, 2, 120)) for number in range(3)]
        alarms += bool(list(subgroup_warnings(measured(scored(seed, 120), *columns))))
    assert alarms <= 5


def test_few_images_are_shown_and_never_compared() -> None:
    images = scored(0, 60)
    codes = np.r_[np.zeros(30), np.ones(19), np.full(11, 2)]
    wrong = ScoredImages(labels=(images.probabilities.argmax(1) + (codes > 0)) % 3, probabilities=images.probabilities,
                         components=images.components)  # fmt: skip
    [column] = measured(wrong, sliced("site", codes, ("A", "B", "C", "D")))
    assert column.gap is None
    facts = subgroup_facts([column], {})["columns"]
    assert isinstance(facts, list)
    assert [each["compared"] for each in facts[0]["subgroups"]] == [True, False, False, False]
    none = column.subgroups[3]
    assert (none.accuracy.images, none.accuracy.value, none.balanced_accuracy) == (0, None, None)
    assert not list(subgroup_warnings([column]))
    unfitted = Calibration(temperature=1.0, level=0.9, threshold=None)
    [column] = measured(wrong, sliced("site", codes, ("A", "B", "C", "D")), calibration=unfitted)
    assert column.subgroups[0].coverage is None


ONE = np.zeros(300, np.int64)
"""All images are of one class."""


def test_a_site_is_no_worse_for_having_more_of_a_hard_class() -> None:
    """Of the easy class 95 % are right at both sites, of the hard one 55 %; one site has mostly hard images."""
    rng = np.random.default_rng(7)
    codes, components = np.repeat([0, 1], 300), np.arange(600)
    labels = (rng.random(600) < np.where(codes == 0, 0.2, 0.8)).astype(np.int64)
    right = rng.random(600) < np.where(labels == 0, 0.95, 0.55)
    assert permutation_p(right, codes, components, np.zeros(600, np.int64)) < 0.01
    assert permutation_p(right, codes, components, labels) > 0.05
    worse = right & ~((codes == 1) & (rng.random(600) < 0.2))
    assert permutation_p(worse, codes, components, labels) < 0.01, "a site that is worse in each class is found"


def test_patients_with_images_of_several_classes_are_compared_within_a_class() -> None:
    """Every benign image is right and every melanoma wrong, wherever it was taken."""
    mostly_benign, mostly_melanoma = np.arange(10) == 9, np.arange(10) != 9
    melanoma = np.concatenate([np.tile(mostly_benign, 10), np.tile(mostly_melanoma, 10)])
    labels, site = melanoma.astype(np.int64), np.repeat([0, 1], 100)
    assert permutation_p(~melanoma, site, np.repeat(np.arange(20), 10), labels) == 1.0
    classes = np.tile([0, 1], 30)
    assert permutation_p(classes == 0, classes, np.repeat(np.arange(30), 2), classes) == 1.0, "class and camera are one"


@pytest.mark.parametrize("shared", [True, False])
def test_a_worse_site_is_found_among_patients_with_images_of_several_classes(shared: bool) -> None:
    rng = np.random.default_rng(2)
    components, labels = np.repeat(np.arange(60), 6), np.tile([0, 0, 0, 0, 1, 1], 60)
    site = np.repeat(rng.integers(0, 2, 60), 6) if shared else rng.integers(0, 2, 360)
    right = rng.random(360) < np.where(labels == 0, 0.95, 0.55)
    assert permutation_p(right, site, components, labels) > 0.05
    assert permutation_p(right & ((site == 0) | (rng.random(360) < 0.7)), site, components, labels) < 0.01


def test_p_of_single_images_is_near_that_of_chi_square() -> None:
    rng = np.random.default_rng(3)
    for share in (0.8, 0.7, 0.65):
        codes = np.repeat([0, 1], 150)
        right = np.r_[rng.random(150) < 0.8, rng.random(150) < share]
        table = np.array([[right[codes == code].sum(), (~right[codes == code]).sum()] for code in (0, 1)])
        expected = chi2_contingency(table, correction=False).pvalue
        assert permutation_p(right, codes, np.arange(300), ONE) == pytest.approx(expected, rel=0.35, abs=0.02)


@pytest.mark.long
@pytest.mark.parametrize("shared", [True, False])
def test_images_of_one_group_are_not_independent_evidence(shared: bool) -> None:
    """30 groups of ten images, all right or all wrong, with one value each or with both."""
    rng = np.random.default_rng(5)
    alarms, naive = 0, 0
    for _ in range(40):
        components = np.repeat(np.arange(30), 10)
        right = np.repeat(rng.random(30) < 0.7, 10)
        codes = np.repeat(rng.integers(0, 2, 30), 10)
        if not shared:
            flipped = rng.random(300) < 0.1
            codes = np.where(flipped, 1 - codes, codes)
        alarms += permutation_p(right, codes, components, ONE) < 0.05
        naive += permutation_p(right, codes, np.arange(300), ONE) < 0.05
    assert alarms <= 6
    assert naive >= 12, "as single images, chance alone would seem a difference"
