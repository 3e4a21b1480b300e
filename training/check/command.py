"""`python -m training check`: that this machine trains, proves and exports, on its GPU or without one."""

from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO

from serving.contract import selfcheck
from serving.contract.selfcheck import Result, SelfCheck
from training.check import arithmetic, collectives, runs, steps
from training.check.runs import FAMILIES, Runs
from training.device import find_device
from training.errors import CheckFailed

LOG = "training.log"


@dataclass(frozen=True, kw_only=True)
class CheckConfig:
    """Check that this machine trains every kind of model, proves it and exports it, on its GPU or without one."""

    out: Path = Path("check")
    """Folder for check.json, a model file of each kind, and what the runs print."""


def check(config: CheckConfig) -> Path:
    """Try each line, print and write the table, and return its file. Raises CheckFailed, OSError."""
    config.out.mkdir(parents=True, exist_ok=True)
    device = find_device("auto")
    record = SelfCheck("training")
    record.try_line("driver", selfcheck.driver)
    record.try_line("card", selfcheck.card)
    record.try_line("providers", selfcheck.providers)
    record.try_line("torch", arithmetic.torch_sees_the_gpu)
    record.try_line("cuDNN, no TF32", partial(arithmetic.convolution_is_float32, device))
    with TemporaryDirectory() as folder, (config.out / LOG).open("w", encoding="utf-8") as log:
        trained = Runs(Path(folder), config.out)
        for family in FAMILIES:
            record.try_line(f"train {family}", partial(_quietly, log, partial(trained.train, family)))
        record.try_line("eight bits", trained.eight_bits)
        record.try_line("torch on GPU beside CPU", partial(runs.gpu_is_as_cpu, trained, device))
        record.try_line("goldens of GPU on CPU", partial(runs.goldens_of_gpu, trained, device))
        record.try_line("goldens of CPU on GPU", partial(_quietly, log, partial(runs.goldens_of_cpu, trained, device)))
    for family in FAMILIES:
        record.try_line(f"step {family}", partial(steps.step, family, device))
    record.try_line("NCCL", collectives.gpus_add_up)
    path = record.write(config.out)
    print(record.summary(path))
    if record.failed:
        raise CheckFailed(f"{', '.join(record.failed)} failed; {path} says why, {config.out / LOG} what the runs print")
    return path


def _quietly(log: IO[str], attempt: Callable[[], Result]) -> Result:
    """What a run prints goes to the log, not between the lines of the table."""
    with redirect_stdout(log):
        return attempt()


def check_summary(path: Path) -> str:
    """Where the figures are."""
    return str(path)
