"""Processes of the system: which there are, and waiting for what they do."""

import time
from collections.abc import Callable
from pathlib import Path

PATIENCE_S = 60
"""For a trainer that must end within 25 or 30 s of a quiet machine."""


def children(parent: int) -> list[int]:
    return [int(pid) for pid in Path(f"/proc/{parent}/task/{parent}/children").read_text().split()]


def is_gone(pid: int) -> bool:
    """Ended, though perhaps nobody has asked for its exit code yet."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def wait_until(
    holds: Callable[[], bool], seconds: float = PATIENCE_S, state: Callable[[], object] = lambda: None
) -> None:
    """Return once it holds; after that time fail with the `state` of what was waited for."""
    until = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < until, state()
        time.sleep(0.001)
