import unicodedata

import pytest

from training.__main__ import options
from training.errors import ConfigError
from training.options.config import TrainConfig
from training.promotion.floors import check_classes, parse


def test_a_floor_is_a_name_and_a_value() -> None:
    assert parse("balanced_accuracy=0.5") == ("balanced_accuracy", 0.5)
    assert parse("sensitivity:a=b=1").of_class == "a=b"


@pytest.mark.parametrize("text", ["accuracy", "accuracy=x", "accuracy=1.5", "accuracy=nan", "=0.5", "log_loss=0.5"])
def test_another_one_is_refused_with_the_names(text: str) -> None:
    with pytest.raises(ConfigError, match=r"expected NAME=VALUE, a value of 0 to 1 and one of the names accuracy, "):
        parse(text)


def test_a_class_must_be_one_of_the_data() -> None:
    apart, together = (unicodedata.normalize(form, "Nävus") for form in ("NFD", "NFC"))
    check_classes([f"sensitivity:{apart}=1"], [together])
    check_classes(["sensitivity:cat=1", "accuracy=1"], ["cat"])
    with pytest.raises(ConfigError, match="there is no class 'dog'; there are cat"):
        check_classes(["sensitivity:dog=1"], ["cat"])


def test_floors_are_repeatable_and_given_again_they_are_the_same() -> None:
    given = ["--floor", "accuracy=0.5", "--floor", "sensitivity:cat=0.8"]
    assert options("train", given).floor == ("accuracy=0.5", "sensitivity:cat=0.8")
    assert options("train", [*given, *given]).floor == ("accuracy=0.5", "sensitivity:cat=0.8")


@pytest.mark.parametrize("promote", ["always", "never"])
def test_a_floor_that_would_not_count_is_refused(promote: str) -> None:
    with pytest.raises(ConfigError, match=f"--floor: expected none beside --promote {promote}"):
        TrainConfig(promote=promote, floor=("accuracy=0.5",))  # type: ignore[arg-type]
