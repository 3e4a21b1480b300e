"""The command line: `python -m training [train|audit|evaluate] [options]`; `--help` shows every option."""

import argparse
import os
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

# Before anything imports tqdm: of the processes that train together, the first shows its progress.
if os.environ.get("RANK", "0") != "0":
    os.environ["TQDM_DISABLE"] = "1"

import torch
import tyro

from training import failures, sagemaker
from training.config import TrainConfig, from_yaml
from training.distributed import Group
from training.engine import runs
from training.errors import (
    EXIT_CODES,
    ConfigError,
    ExportRefused,
    Interrupted,
    NonFiniteLoss,
    OutOfMemory,
    ProcessLost,
)
from training.evaluate import EvaluateConfig, evaluate
from training.report import audit as audit_report
from training.report import evaluation
from training.report import run as report
from training.report.audit import AuditConfig
from training.signals import Interruption
from training.study import command as study
from training.study.command import StudyConfig
from training.train import train

# What a verb is told, what it does, and what it says at the end of the folder that it leaves.
VERBS: dict[str, tuple[type[Any], Callable[[Any], Path], Callable[[Path], str]]] = {
    "train": (TrainConfig, train, report.summary),
    "audit": (AuditConfig, audit_report.run, audit_report.summary),
    "evaluate": (EvaluateConfig, evaluate, evaluation.summary),
    "study": (StudyConfig, study.study, study.summary),
}
HINTS: dict[type[BaseException], str] = {
    NonFiniteLoss: "a lower --lr or --precision float32 may help",
    OutOfMemory: "a smaller --batch-size or --image-size or fewer --workers need less; the first two make another run",
    torch.AcceleratorError: "the GPU or its driver failed; the system's log says more",
    ProcessLost: "the run goes on from its last checkpoint with --resume and its folder, or --resume auto",
    ExportRefused: "no model was published and `latest` was left as it is",
}


def main(arguments: list[str]) -> int:
    """Run one command, `train` if none is named; the exit code says what went wrong: training/README.md."""
    interruption = Interruption()
    interruption.install()
    verb, told = (arguments[0], arguments[1:]) if arguments and arguments[0] in VERBS else ("train", arguments)
    _, act, summary = VERBS[verb]
    by_sagemaker = sagemaker.asks(arguments)
    group = Group.from_environment()
    try:
        with group:
            config = group.share(lambda: options(verb, sagemaker.options() if by_sagemaker else told))
            if isinstance(config, TrainConfig):
                folder = train(config, interruption, group)
            elif group.size > 1:
                raise ConfigError(f"{verb} is done by one process, not by {group.size} together: leave torchrun away")
            else:
                folder = act(config)
            if group.first:
                print(summary(folder))
        if by_sagemaker:
            sagemaker.finished(folder)
    except tuple(EXIT_CODES) as error:
        interruption.leave()
        cause = next(cause for cause in EXIT_CODES if isinstance(error, cause))
        hints = ([HINTS[cause]] if cause in HINTS else []) + getattr(error, "__notes__", [])
        reason = "\n".join([f"error: {error}", *hints])
        if by_sagemaker:
            sagemaker.failed(reason)
        return group.fail(EXIT_CODES[cause], reason)
    except Interrupted as stop:
        interruption.leave()
        return group.fail(stop.exit_code, f"{stop}; a run goes on with --resume and its folder, or --resume auto")
    return 0


def options(verb: str, arguments: list[str]) -> Any:
    """What the command line says; to `train`, over what the file of --config says, or the run of --resume.

    Raises ConfigError, CheckpointRefused.
    """
    kind, program = VERBS[verb][0], f"python -m training {verb}"
    if kind is not TrainConfig:
        return tyro.cli(kind, prog=program, args=arguments)
    parser = argparse.ArgumentParser(prog=program, add_help=False, allow_abbrev=False)
    parser.add_argument("--config", type=Path)
    known, others = parser.parse_known_args(arguments)
    default = TrainConfig() if known.config is None else from_yaml(known.config)
    config = tyro.cli(TrainConfig, prog=program, args=others, default=default)
    if config.resume is None or (run := runs.to_resume(config.resume, config.out, config.name)) is None:
        return config
    begun = replace(runs.begun(run), resume=config.resume)
    resumed = tyro.cli(TrainConfig, prog=program, args=others, default=begun)
    runs.refuse_changes(begun, resumed)
    return resumed


if __name__ == "__main__":
    threading.excepthook = failures.of_thread
    code = main(sys.argv[1:])
    # All that counts is on the disk, and to take the interpreter down takes of the seconds that SIGTERM leaves.
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError):
            stream.flush()
    os._exit(code)
