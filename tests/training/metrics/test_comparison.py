import numpy as np
import pytest
from scipy.stats import binomtest

from tests.support.simulated_models import CLASSES, champion_and_challenger
from training.metrics.classification import score
from training.metrics.comparison import Comparison, compare, sign_flip


def compared(labels: np.ndarray, a: np.ndarray, b: np.ndarray) -> Comparison:
    scores = (score(labels, a, CLASSES), score(labels, b, CLASSES))
    return compare(labels, (a, b), scores, np.arange(len(labels)))


def right(only_a: int, only_b: int, both: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """Which images A and B are right on."""
    kinds = np.repeat([[True, False], [False, True], [True, True]], (only_a, only_b, both), 0)
    return kinds[:, 0], kinds[:, 1]


@pytest.mark.parametrize(
    ("only_a", "only_b", "expected"),
    [(1, 9, 2 * (1 + 10) / 2**10), (9, 1, 2 * (1 + 10) / 2**10), (0, 5, 2 / 2**5), (7, 7, 1), (0, 0, 1)],
)
def test_where_each_image_is_alone_the_p_is_mcnemar_s(only_a: int, only_b: int, expected: float) -> None:
    a, b = right(only_a, only_b)
    assert sign_flip(a, b, np.arange(len(a))) == pytest.approx(expected)
    if decided := only_a + only_b:
        assert sign_flip(a, b, np.arange(len(a))) == pytest.approx(binomtest(only_b, decided).pvalue)


def test_images_of_one_component_are_one_draw() -> None:
    a, b = right(0, 10, 0)
    assert sign_flip(a, b, np.arange(10)) == pytest.approx(2 / 2**10)
    assert sign_flip(a, b, np.arange(10) // 5) == pytest.approx(2 / 2**2), "two patients of five images"
    assert sign_flip(a, b, np.zeros(10, np.int64)) == 1, "one patient decides nothing"
    a, b = right(2, 9, 4)
    components = np.array([0, 1, 1, 1, 2, 2, 2, 3, 4, 5, 0, 0, 1, 6, 6])  # nets of 0 to 6: 0, 2, 3, 1, 1, 1, 0
    rng = np.random.default_rng(0)
    net = np.bincount(components, weights=b.astype(float) - a)
    flipped = np.abs(rng.choice([-1, 1], (100_000, len(net))) @ net)
    assert sign_flip(a, b, components) == pytest.approx((flipped >= abs(net.sum())).mean(), abs=5e-3)


def test_equal_models_are_seldom_said_to_differ_where_images_of_a_patient_agree() -> None:
    """Of 400 pairs of equal models on 30 patients of 8 images, whom A or B recognises on all images or on none."""
    rng, patients = np.random.default_rng(0), np.repeat(np.arange(30), 8)
    pairs = [[rng.random(30)[patients] < 0.7 for _ in "ab"] for _ in range(400)]
    assert np.mean([sign_flip(a, b, patients) < 0.05 for a, b in pairs]) < 0.05
    assert np.mean([sign_flip(a, b, np.arange(240)) < 0.05 for a, b in pairs]) > 0.3


def test_who_is_right_where_the_labels_differ() -> None:
    labels = np.array([0, 0, 0, 1, 1, 2])
    a = np.array(
        [[0.8, 0.1, 0.1], [0.7, 0.2, 0.1], [0.2, 0.7, 0.1], [0.6, 0.3, 0.1], [0.1, 0.8, 0.1], [0.9, 0.1, 0]], np.float32
    )
    b = np.array(
        [[0.8, 0.1, 0.1], [0.1, 0.9, 0.0], [0.8, 0.1, 0.1], [0.1, 0.1, 0.8], [0.3, 0.4, 0.3], [0.9, 0.1, 0]], np.float32
    )
    found = compared(labels, a, b)
    assert (found.labels_differ, found.only_a_right, found.only_b_right, found.both_wrong) == (3, 1, 1, 1)
    assert found.disagreements.tolist() == [1, 2, 3], "by confidence: 1.6, 1.5 and 1.4"
    assert found.tally == (
        "Their labels differ on 3 images: only A is right on 1, only B on 1, neither on 1; exact sign-flip p = 1."
    )


def test_a_model_against_itself_is_undecided() -> None:
    labels, a, _ = champion_and_challenger(0, 100)
    found = compared(labels, a, a.copy())
    for name, difference in found.differences.items():
        assert (difference.value, difference.better) == (0.0, None)
        assert difference.interval is not None
        assert (difference.interval == (0.0, 0.0)) == (name != "accuracy")
    assert (found.labels_differ, len(found.disagreements), found.p_value) == (0, 0, 1.0)
    assert found.verdict.startswith("The evidence does not decide which is better")
    assert found.tally == "Both give every image the same label."


def test_the_better_one_is_named_whichever_letter_it_has_and_less_log_loss_is_better() -> None:
    labels, better, worse = champion_and_challenger(0, 3000)
    for letter, a, b in (("A", better, worse), ("B", worse, better)):
        found = compared(labels, a, b)
        assert {difference.better for difference in found.differences.values()} == {letter}
        assert (
            found.differences["accuracy"].value
            == score(labels, b, CLASSES).accuracy - score(labels, a, CLASSES).accuracy
        )
        assert found.verdict == f"{letter} is better in accuracy, balanced accuracy, macro F1, ROC AUC and log loss."
        assert found.p_value < 1e-6


@pytest.mark.parametrize(("more", "better"), [(4, None), (6, "B")])
def test_accuracy_is_decided_where_mcnemar_decides(more: int, better: str | None) -> None:
    """Of 316 images 80 are wrong by A, and B is right on a few of these, too: p is 0.12 for 4 and 0.03 for 6."""
    labels, wrong = np.zeros(316, np.int64), np.arange(316) < 80
    a, b = (
        np.where(each[:, None], [0.1, 0.8, 0.1], [0.8, 0.1, 0.1]) for each in (wrong, wrong & (np.arange(316) >= more))
    )
    found = compared(labels, a.astype(np.float32), b.astype(np.float32))
    assert (found.p_value < 0.05) == (better is not None)
    assert found.differences["accuracy"].better == better


def test_what_is_not_decided_is_said_and_what_is_undefined_is_not() -> None:
    labels, a, _ = champion_and_challenger(0, 100)
    doubtful = np.sqrt(a) / np.sqrt(a).sum(1, keepdims=True)
    found = compared(labels, a, doubtful)
    assert found.differences["log_loss"].better == "A"
    assert found.verdict == (
        "A is better in log loss. The evidence does not decide on accuracy, balanced accuracy, macro F1 and ROC AUC: "
        "the interval contains zero."
    )
    alone = labels == 0
    found = compared(labels[alone], a[alone], doubtful[alone])
    assert found.differences["roc_auc"].value is found.differences["roc_auc"].interval is None
    assert "ROC AUC" not in found.verdict
