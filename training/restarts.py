"""Go on by itself where the process that trains is killed, in one that has everything imported already.

What torchrun's --max-restarts does for processes that train together, for one alone, and in a tenth of the time: a
start is mostly imports, 4 s of them, and a fork has done them.
"""

import importlib
import os
import signal
import sys
from dataclasses import replace

from training.config import TrainConfig, default_name
from training.engine import runs
from training.errors import Interrupted
from training.signals import Interruption, end_with_parent

MAY_PASS = (5, 6)
"""Exit codes of what may be better the next time: memory or the GPU, a data worker or the storage."""


def survive(config: TrainConfig, interruption: Interruption) -> TrainConfig:
    """Return, in a process made for it, what to train; what called it stays in here, without a GPU or a thread.

    It waits, makes another process when that one was killed or ended with a code of MAY_PASS, which goes on from the
    last checkpoint, at most --max-restarts times, and leaves with the last one's exit code. What it is asked to stop
    by, it hands on. Raises Interrupted when the last one was killed.
    """
    config = replace(config, name=config.name or default_name(config.model))
    importlib.import_module("torch._dynamo")  # or every process would, for a second: optimizers import it
    for left in range(config.max_restarts, -1, -1):
        for stream in (sys.stdout, sys.stderr):
            stream.flush()  # or both processes would print what is in it
        child = os.fork()
        if child == 0:
            os.setsid()  # Ctrl-C goes to the parent alone, which hands it on, once
            end_with_parent(signal.SIGTERM)
            return config
        code = _outcome(child, interruption)
        last = not left or interruption.number is not None
        if code >= 0 and (last or code not in MAY_PASS):
            os._exit(code)
        if last:
            raise Interrupted(-code)
        ended = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with {code}"
        print(f"{config.run}: the process that trained {ended}; another goes on ({left - 1} left)", file=sys.stderr)
        config = _to_go_on(config)
    raise AssertionError("the last one is not replaced")


def _outcome(child: int, interruption: Interruption) -> int:
    """The exit code of a child, or minus the signal that killed it."""
    try:
        return _wait(child)
    except Interrupted:
        assert interruption.number is not None
        os.kill(child, interruption.number)
        return _wait(child)


def _wait(child: int) -> int:
    """As the first process of a container, this one is also left what its grandchildren were when their parent died."""
    while True:
        ended, status = os.wait()
        if ended == child:
            return os.waitstatus_to_exitcode(status)


def _to_go_on(config: TrainConfig) -> TrainConfig:
    """With the choices that the run has made, if it has come that far."""
    if not (config.run / runs.CONFIG).is_file():
        return config
    asked = {name: getattr(config, name) for name in runs.MAY_CHANGE}
    return replace(runs.begun(config.run), **asked | {"resume": str(config.run)})
