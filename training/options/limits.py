"""The limits of numbers, as parts of the options' types, and the message of an option that does not keep its own."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import get_args, get_type_hints

from serving.contract.formats.image_header import MIN_SIDE
from training.errors import ConfigError


@dataclass(frozen=True)
class Bound:
    """A limit of a number, as part of an option's type. `expected` is its wording in the error message."""

    expected: str
    holds: Callable[[float], bool]


Positive = Bound("above 0", lambda value: value > 0)
NotNegative = Bound("0 or more", lambda value: value >= 0)
AtLeastOne = Bound("1 or more", lambda value: value >= 1)
Share = Bound("at least 0 and below 1", lambda value: 0 <= value < 1)
UpToOne = Bound("above 0 and at most 1", lambda value: 0 < value <= 1)
Byte = Bound("0 to 255", lambda value: 0 <= value <= 255)
Seed = Bound("0 to 4294967295", lambda value: 0 <= value < 2**32)
"""What NumPy's older generators take, by which scikit-learn draws."""
Side = Bound(f"{MIN_SIDE} or more", lambda value: value >= MIN_SIDE)


def check_limits(options: object, kind: type) -> None:
    """Raise ConfigError for a number outside the limits that the types of the fields of `kind` set."""
    for name, bounds in _bounds(kind).items():
        value = getattr(options, name)
        numbers = value if isinstance(value, tuple) else () if value is None else (value,)
        for bound in bounds:
            require(all(map(bound.holds, numbers)), name, bound.expected, value)


def share_of(option: str, text: str) -> tuple[int, int]:
    """The numbers of an option that is written as i/n, such as 1/4. Raises ConfigError."""
    numbers = re.fullmatch(r"(\d+)/(\d+)", text)
    i, n = map(int, numbers.groups()) if numbers else (0, 0)
    require(1 <= i <= n, option, "i/n with i from 1 to n, such as 1/4", text)
    return i, n


def require(holds: bool, option: str, expected: str, value: object) -> None:
    """Raise ConfigError with the option, the expected and the actual value, unless the condition holds."""
    if not holds:
        raise ConfigError(f"--{option.replace('_', '-')}: expected {expected}, got {value}")


@cache
def _bounds(kind: type) -> dict[str, list[Bound]]:
    """The limits in the types of the options, also in `Annotated[...] | None` and `tuple[Annotated[...], ...]`."""
    bounds: dict[str, list[Bound]] = {}
    for name, hint in get_type_hints(kind, include_extras=True).items():
        annotations = [note for part in (hint, *get_args(hint)) for note in getattr(part, "__metadata__", ())]
        bounds[name] = [note for note in annotations if isinstance(note, Bound)]
    return bounds
