"""Stop when asked to: while a run can save itself, after the step and the save; else, or when asked again, at once."""

import ctypes
import os
import signal
from types import FrameType

from training.errors import Interrupted

SIGNALS = (signal.SIGTERM, signal.SIGINT)
PR_SET_PDEATHSIG = 1
"""Of prctl(2)."""


class Interruption:
    """Takes SIGTERM and SIGINT; inside `with interruption:` the first is only noted, and raised at the end of it."""

    def __init__(self) -> None:
        self.number: int | None = None
        self._deferred = False

    def install(self) -> None:
        """From now on, in the main thread; the first process of a container has no default action for them."""
        for number in SIGNALS:
            signal.signal(number, self._take)

    def __enter__(self) -> None:
        self._deferred = True

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._deferred = False
        if kind is None and self.number is not None:
            raise Interrupted(self.number)

    def leave(self) -> None:
        """From now on a signal ends the process at once: nothing is left to be saved."""
        self.number = self.number or signal.SIGTERM

    def _take(self, number: int, frame: FrameType | None) -> None:
        again, self.number = self.number is not None, number
        if again:
            os._exit(128 + number)
        if not self._deferred:
            raise Interrupted(number)


def end_with_parent(number: signal.Signals) -> None:
    """Have the kernel send this process a signal when its parent has died, however that happened."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, number)
