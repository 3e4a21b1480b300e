"""What an operator may set, read from the environment once, when the service starts."""

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, NewType

from serving.contract.decode import MAX_BYTES, MAX_PIXELS
from serving.contract.drift import MIN_WINDOW

PREFIX = "TWINLENS_"

Confidence = NewType("Confidence", float)
"""A probability strictly between 0 and 1."""
Interval = NewType("Interval", float)
"""Seconds between two looks; 0 for never."""
Window = NewType("Window", int)
"""Images; fewer have no distribution to speak of."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Each field is the environment variable TWINLENS_<FIELD>; the README's table says what it is for."""

    model: Path = Path("runs/latest/model.onnx")
    reload_s: Interval = Interval(2.0)
    require_gpu: bool = False
    max_bytes: int = MAX_BYTES
    max_pixels: int = MAX_PIXELS
    max_batch: int = 32
    max_queue: int = 128
    max_explanations: int = 2
    workers: int = 1
    timeout_s: float = 10.0
    idle_s: float = 5.0
    grace_s: float = 25.0
    token_file: Path | None = None
    protect_metrics: bool = False
    log_requests: bool = False
    slow_s: float = 1.0
    abstain_below: Confidence | None = None
    drift_window: Window = Window(1000)

    @classmethod
    def from_env(cls, environment: Mapping[str, str] = os.environ) -> "Settings":
        """Raises ValueError naming the variable, what it holds and what was expected; also for unknown names."""
        names = {PREFIX + field.name.upper(): field for field in fields(cls)}
        unknown = sorted(name for name in environment if name.startswith(PREFIX) and name not in names)
        if unknown:
            raise ValueError(f"{', '.join(unknown)}: no such setting; there are {', '.join(names)}")
        given: dict[str, Any] = {
            field.name: _parse(name, environment[name], field.type)
            for name, field in names.items()
            if name in environment
        }
        return cls(**given)


def _parse(name: str, text: str, kind: object) -> Any:
    if kind is bool:
        if text not in ("0", "1"):
            raise ValueError(f"{name}={text!r}: expected 0 or 1")
        return text == "1"
    if kind in (Path, Path | None):
        return Path(text)
    if kind is Window:
        if not (text.isascii() and text.isdecimal() and int(text) >= MIN_WINDOW):
            raise ValueError(f"{name}={text!r}: expected a whole number of at least {MIN_WINDOW}")
        return int(text)
    is_confidence = kind == Confidence | None
    assert is_confidence or kind in (int, float, Interval)
    number = int if kind is int else float
    least = "0 or" if kind is Interval else "a number"
    expected = f"{least} above 0{' and below 1' if is_confidence else ''}"
    try:
        value = number(text)
    except ValueError as error:
        raise ValueError(f"{name}={text!r}: expected {expected}") from error
    if not (value > 0 or (kind is Interval and value == 0)) or value == math.inf or (is_confidence and value >= 1):
        raise ValueError(f"{name}={text!r}: expected {expected}")
    return value
