"""What can go wrong in a command, and the exit code of each; training/README.md lists them."""

import signal
from collections.abc import Sequence

import torch

from serving.contract.model import ModelRefused


class ConfigError(ValueError):
    """An option that cannot be followed; the message says what was expected and what came."""


class DataError(ValueError):
    """Data that no model can be trained on; the message says what is expected and what is there."""


class NonFiniteLoss(RuntimeError):
    """The loss became infinite or not a number: the weights are lost, the last checkpoint is not.

    `step` is the step of the epoch that it happened in, from 0, and `images` are those of this step.
    """

    def __init__(self, message: str, step: int = 0) -> None:
        super().__init__(message)
        self.step = step
        self.images: Sequence[int] = ()


class OutOfMemory(RuntimeError):
    """The device or the host has too little memory for the run."""


class WorkerLost(RuntimeError):
    """A process that prepares batches died, hangs, or has no shared memory for them."""


class CheckpointRefused(RuntimeError):
    """A file that holds no checkpoint, or one that does not fit; the message says which and why."""


class WeightsMissing(RuntimeError):
    """Pretrained weights that are not on this machine and cannot be fetched; the message says what fetches them."""


class ExportRefused(RuntimeError):
    """The exported file does not predict what the evaluated model predicts; it is not published."""


class CheckFailed(RuntimeError):
    """A check that a person asked for failed; the message names what."""

    exit_code = 1


class DeviceMissing(RuntimeError):
    """The requested device does not exist; training never falls back to another one silently."""


class DeviceFailed(RuntimeError):
    """A library of the GPU, cuBLAS or cuDNN, reported an error; the message is the library's."""


class ProcessLost(RuntimeError):
    """Another process of the group has ended, or cannot be reached any more."""


class FoldFailed(RuntimeError):
    """A training of the folds failed in its own process, and ended it with `exit_code`; the message has its words."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class Interrupted(BaseException):
    """The process was asked to stop; `exit_code` is the shell's for the signal.

    Not an Exception, so that `except Exception` does not catch it.
    """

    def __init__(self, number: int) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.exit_code = 128 + number


EXIT_CODES: dict[type[BaseException], int] = {
    ConfigError: 2,
    DataError: 3,
    NonFiniteLoss: 4,
    OutOfMemory: 5,
    MemoryError: 5,
    torch.AcceleratorError: 5,
    DeviceFailed: 5,
    WorkerLost: 6,
    OSError: 6,
    CheckpointRefused: 7,
    WeightsMissing: 7,
    ExportRefused: 7,
    ModelRefused: 7,
    DeviceMissing: 8,
    ProcessLost: 9,
}
