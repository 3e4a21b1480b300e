"""The trainer, as a process of its own or stopped after a number of steps."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.support import forked
from tests.support.paths import ROOT
from training.options.config import TrainConfig
from training.signals import Interruption

SMALL = ["--width", "8", "--image-size", "16", "--batch-size", "8", "--patience", "1000"]
STEPS_AN_EPOCH = 8
TIMEOUT_S = 240


def arguments_for(photos: Path, out: Path, *more: str) -> list[str]:
    small = SMALL[2:] if "mlp" in more else SMALL
    return ["--data", str(photos), "--out", str(out), "--name", "x", "--epochs", "400", *small, *more]


def run_of(arguments: list[str], *before: str, **given: object) -> "subprocess.CompletedProcess[str]":
    """A trainer to its end; `before` are words before its command."""
    if not before and not given and forked.can_run():
        return forked.run(arguments, ROOT, TIMEOUT_S, strict=False)
    command = [*before, sys.executable, "-m", "training", *arguments]
    options: dict[str, Any] = {"cwd": ROOT, "capture_output": True, "text": True, "timeout": TIMEOUT_S}
    return subprocess.run(command, check=False, **(options | given))


class After(Interruption):
    """A request to stop, as by SIGTERM, after `reads` of `number`: one after each step and one at the end of a block.

    The loop has no method that asks, so the reads of the attribute are counted, wherever they are: one more of them in
    the trainer stops the runs of all these tests earlier.
    """

    def __init__(self, reads: int) -> None:
        super().__init__()
        self._reads = reads

    @property
    def number(self) -> int | None:
        self._reads -= 1
        return signal.SIGTERM if self._reads < 0 else None

    @number.setter
    def number(self, value: int | None) -> None:
        pass


def config(photos: Path, out: Path, **given: object) -> TrainConfig:
    """Two epochs of eight steps, with everything on that draws at random."""
    common: dict[str, Any] = {
        **({} if given.get("model") == "mlp" else {"width": 8}),
        "image_size": 16,
        "epochs": 2,
        "batch_size": 8,
        "augment": "strong",
        "dropout": 0.3,
    }
    return TrainConfig(data=photos, out=out, **(common | {"mixup": 0.4, "cutmix": 1.0, "ema": 0.9} | given))


def start(arguments: list[str], epochs: int = 1) -> "subprocess.Popen[str]":
    """A trainer as a process of its own, returned once it has printed `epochs` epochs."""
    command = [sys.executable, "-m", "training", *arguments]
    trainer = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    assert trainer.stdout is not None
    for line in trainer.stdout:
        epochs -= line.startswith("epoch")
        if not epochs:
            return trainer
    raise AssertionError(trainer.communicate()[1])


def command(*arguments: object, cwd: Path = ROOT, **environment: str) -> "subprocess.CompletedProcess[str]":
    """A command to its end, or to its first warning, in these variables beside those of the tests."""
    words = [str(argument) for argument in arguments]
    if not environment and forked.can_run():
        return forked.run(words, cwd, TIMEOUT_S, strict=True)
    return subprocess.run(
        [sys.executable, "-W", "error", "-m", "training", *words],
        cwd=cwd,
        env=os.environ | {"PYTHONPATH": str(ROOT)} | environment,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
