"""SIGTERM and SIGINT: a run saves itself first and then stops; a second signal stops it at once."""

import ctypes
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from training.errors import Interrupted

SIGNALS = (signal.SIGTERM, signal.SIGINT)
PR_SET_PDEATHSIG = 1
"""The option of prctl(2) that sets the signal."""


class Interruption:
    """The handler of SIGTERM and SIGINT, which raises Interrupted; while deferred, only afterwards."""

    def __init__(self) -> None:
        self.number: int | None = None
        self._deferred = False

    def install(self) -> None:
        """Install the handler, in the main thread: the first process of a container has no default action."""
        for number in SIGNALS:
            signal.signal(number, self._take)

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """A context in which a signal is only noted: Interrupted is raised at its end, unless it ends in an error."""
        self._deferred = True
        try:
            yield
        finally:
            self._deferred = False
        if self.number is not None:
            raise Interrupted(self.number)

    def end_at_next(self) -> None:
        """From now on a signal ends the process at once: nothing is left to be saved."""
        self.number = self.number or signal.SIGTERM

    def _take(self, number: int, frame: FrameType | None) -> None:
        is_second, self.number = self.number is not None, number
        if is_second:
            os._exit(128 + number)
        if not self._deferred:
            raise Interrupted(number)


def end_with_parent(number: signal.Signals) -> None:
    """Have the kernel send this process a signal when its parent has ended, also when that was killed.

    Only Linux has that call; elsewhere this does nothing, and PyTorch's workers notice within seconds by themselves.
    """
    if hasattr(libc := ctypes.CDLL(None), "prctl"):
        libc.prctl(PR_SET_PDEATHSIG, number)
