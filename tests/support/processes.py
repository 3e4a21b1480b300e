"""Processes of the system: which there are, and waiting for what they do."""

import subprocess
import time
from collections.abc import Callable
from pathlib import Path

PATIENCE_S = 60
"""For a trainer that must end within 25 or 30 s of a quiet machine."""


def workers_of(trainer: "subprocess.Popen[str]") -> list[int]:
    return children(trainer.pid)


def children(parent: int) -> list[int]:
    return [int(pid) for pid in Path(f"/proc/{parent}/task/{parent}/children").read_text().split()]


def is_gone(pid: int) -> bool:
    """Ended, though perhaps nobody has asked for its exit code yet."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def wait_until(holds: Callable[[], bool], seconds: float = PATIENCE_S) -> None:
    until = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < until
        time.sleep(0.001)
