from pathlib import Path

import numpy as np
import pytest

from serving.contract.decode import Digest
from training.metrics.intervals.bootstrap import bootstrap
from training.options.config import TrainConfig
from training.promotion.rule import Champion, Judgement, TestAnswers, judge, refusal

CLASSES = ("cat", "dog", "eel")
LABELS = np.arange(300) % 3
CHAMPION = Digest("b" * 64)


def saying(predicted: np.ndarray) -> np.ndarray:
    """Probabilities whose largest is that of the class predicted."""
    return np.where(np.eye(3)[predicted] > 0, 0.8, 0.1).astype(np.float32)


def wrong_on(rows: range) -> np.ndarray:
    """A model that is right but for these rows, for which it names the next class."""
    return saying(np.where(np.isin(np.arange(300), rows), (LABELS + 1) % 3, LABELS))


def judged(
    probabilities: np.ndarray,
    served_model: Champion | None = None,
    *,
    labels: np.ndarray = LABELS,
    leaks: np.ndarray | None = None,
    **options: object,
) -> Judgement:
    answers = TestAnswers(
        digest=Digest("a" * 64),
        classes=CLASSES,
        keys=[str(row) for row in range(len(labels))],
        labels=labels,
        components=np.arange(len(labels)),
        leaks=np.zeros(len(labels), bool) if leaks is None else leaks,
        probabilities=probabilities,
    )
    intervals = bootstrap(labels, probabilities, answers.components, CLASSES)
    return judge(answers, intervals, TrainConfig(**options), served_model)  # type: ignore[arg-type]


def served_model(probabilities: np.ndarray | None, why: str = "") -> Champion:
    return Champion(digest=CHAMPION, version="old", probabilities=probabilities, incomparable=why)


def test_a_first_model_needs_no_rival_to_be_certified() -> None:
    certificate = judged(wrong_on(range(30))).certificate
    assert certificate is not None
    assert (certificate.champion, certificate.margin, certificate.images) == (None, 0.02, 300)
    assert certificate.balanced_accuracy == pytest.approx(0.9)
    assert certificate.chance == pytest.approx(1 / 3)


def test_one_class_for_all_is_never_promoted_even_as_the_first() -> None:
    [fault] = judged(saying(np.full(300, 1))).faults
    assert fault == "it gives every test image the class dog"


def test_a_test_split_of_one_class_shows_nothing() -> None:
    labels = np.zeros(50, np.int64)
    assert judged(saying(labels), labels=labels).faults == (
        "each test image is cat, so none shows that it knows another class",
    )


def test_classes_without_a_test_image_are_named() -> None:
    assert judged(wrong_on(range(30))).warnings == ()
    labels = np.arange(300) % 2
    found = judged(saying(labels), labels=labels)
    assert found.faults == ()
    assert found.warnings == ("The rule says nothing of eel: no image that it judges is of such a class.",)


def test_images_that_leak_are_not_judged() -> None:
    """On the images that leak the model is always right; on the others it is no better than chance."""
    leaks = np.arange(300) < 240
    answers = wrong_on(range(240, 300))
    assert judged(answers).faults == ()
    found = judged(answers, served_model(wrong_on(range(30))), leaks=leaks, floor=("accuracy=0.5",))
    assert found.measured.images == 60
    assert found.measured.balanced_accuracy == 0
    assert found.measured.champion is not None
    assert found.measured.champion.score == 1, "the one that is served is judged on the same images"
    assert [fault.split(":")[0] for fault in found.faults[:2]] == [
        "its balanced accuracy, 0.000, is not above chance, 0.333",
        "--floor accuracy=0.5",
    ]
    [warning] = found.warnings
    assert warning.startswith("The rule leaves out 240 of the 300 test images: ")
    [fault] = judged(wrong_on(range(30)), leaks=np.ones(300, bool)).faults
    assert fault.startswith("each test image has its picture or group in training or validation, too")


def test_chance_is_not_enough() -> None:
    first_two = np.where(LABELS == 2, 0, (LABELS + 1) % 3)  # 0 -> 1, 1 -> 2, 2 -> 0: all wrong
    [fault] = judged(saying(first_two)).faults
    assert fault == "its balanced accuracy, 0.000, is not above chance, 0.333"
    only_dogs = np.where(LABELS == 1, 1, (LABELS + 1) % 3)  # exactly a third of the classes is right
    assert "0.333, is not above chance, 0.333" in judged(saying(only_dogs)).faults[0]


def test_what_is_equal_or_better_holds_and_the_certificate_has_the_comparison() -> None:
    for before in (wrong_on(range(30)), wrong_on(range(60))):
        assert judged(wrong_on(range(30)), served_model(before)).faults == ()
    champion = judged(wrong_on(range(30)), served_model(wrong_on(range(60)))).measured.champion
    assert champion is not None
    assert champion.difference == pytest.approx(0.1)
    assert champion.interval[0] < 0.1 < champion.interval[1]
    assert champion.p_value == pytest.approx(2 / 2**30)
    assert (champion.digest, champion.version, champion.score) == (CHAMPION, "old", pytest.approx(0.8))


def test_what_may_be_worse_than_the_margin_is_refused_with_the_numbers() -> None:
    judgement = judged(wrong_on(range(60)), served_model(wrong_on(range(30))))
    assert judgement.certificate is None
    sentence = refusal(Path("runs/x"), judgement.faults)
    assert "is 0.800, that of version old" in sentence
    assert "0.900 on the same 300 test images" in sentence
    assert "more than --margin 0.02 (sign-flip p = 1.9e-09)" in sentence
    assert '`python -m training promote runs/x --force --reason "..."`' in sentence
    assert judged(wrong_on(range(60)), served_model(wrong_on(range(30))), margin=0.2).faults == ()


def test_a_loss_that_is_not_excluded_is_refused_though_the_scores_are_equal() -> None:
    """Non-inferiority is shown, not assumed: two models that err on other images may differ on others, too."""
    judgement = judged(wrong_on(range(60)), served_model(wrong_on(range(60, 120))))
    champion = judgement.measured.champion
    assert champion is not None
    assert champion.difference == pytest.approx(0)
    assert champion.interval[0] < -0.02
    assert len(judgement.faults) == 1


def test_what_cannot_be_compared_is_refused_with_the_reason() -> None:
    judgement = judged(wrong_on(range(3)), served_model(None, "other classes"))
    assert judgement.faults == ("it cannot be compared with version old, which `latest` serves: other classes",)
    assert judgement.rival == CHAMPION


def test_floors_are_on_the_lower_limit_of_the_interval() -> None:
    answers = wrong_on(range(0, 300, 10))  # every class is right in nine of ten
    reached = judged(answers, floor=("accuracy=0.8", "sensitivity:dog=0.7"))
    assert reached.certificate is not None
    assert [(floor.name, floor.least) for floor in reached.certificate.floors] == [
        ("accuracy", 0.8),
        ("sensitivity:dog", 0.7),
    ]
    assert 0.8 < reached.certificate.floors[0].lower < 0.9
    [fault] = judged(answers, floor=("accuracy=0.9",)).faults
    assert fault.startswith("--floor accuracy=0.9: the 95 % interval begins at 0.8")
    ten = np.arange(10) % 3
    [fault] = judged(saying(ten), labels=ten, floor=("balanced_accuracy=0.9",)).faults
    assert fault == "--floor balanced_accuracy=0.9: the 95 % interval begins at 0.689"
    labels = np.zeros(50, np.int64)
    *_, fault = judged(saying(labels), labels=labels, floor=("sensitivity:eel=0.1",)).faults
    assert fault == "--floor sensitivity:eel=0.1: undefined on these test images"
