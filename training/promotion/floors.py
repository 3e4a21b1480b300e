"""Floors: least scores of the test split, declared before the training as `--floor NAME=VALUE`."""

from collections.abc import Sequence
from typing import NamedTuple

from serving.contract.listing import clean
from training.data.sources.source import shortened
from training.errors import ConfigError

SCORES = ("accuracy", "balanced_accuracy", "macro_f1", "roc_auc")
"""Scores that have an interval."""
SENSITIVITY = "sensitivity:"
"""Followed by the name of a class: the share of its images that are recognised, its recall."""


class LeastScore(NamedTuple):
    """What the lower limit of a score's 95 % interval must be at least."""

    name: str
    least: float

    @property
    def of_class(self) -> str | None:
        """The class whose sensitivity is meant; None for a score of all images."""
        return self.name.removeprefix(SENSITIVITY) if self.name.startswith(SENSITIVITY) else None


def parse(text: str) -> LeastScore:
    """A floor as it is written. Raises ConfigError."""
    name, _, value = clean(text).rpartition("=")  # a class may have = in its name
    try:
        floor = LeastScore(name, float(value))
    except ValueError:
        floor = LeastScore("", -1.0)
    if not (name in SCORES or floor.of_class) or not 0 <= floor.least <= 1:
        known = ", ".join((*SCORES, f"{SENSITIVITY}CLASS"))
        raise ConfigError(f"--floor {text}: expected NAME=VALUE, a value of 0 to 1 and one of the names {known}")
    return floor


def check_classes(floors: Sequence[str], classes: Sequence[str]) -> None:
    """Raise ConfigError for the sensitivity of a class that the data does not have."""
    for text in floors:
        name = parse(text).of_class
        if name is not None and name not in classes:
            raise ConfigError(f"--floor {text}: there is no class {name!r}; there are {shortened(classes)}")
