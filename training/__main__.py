"""The command line: `python -m training [VERB] [options]`; `--help` shows the options of a verb, by default `train`."""

import argparse
import os
import pkgutil
import shutil
import sys
import threading
from contextlib import suppress
from dataclasses import replace
from multiprocessing.util import get_temp_dir
from pathlib import Path
from typing import Any, NamedTuple

# Before tqdm is imported: of the processes that train together, only the first shows its progress.
if os.environ.get("RANK", "0") != "0":
    os.environ["TQDM_DISABLE"] = "1"

import torch
import tyro

from serving.contract.console import show_every_name
from training import failures, sagemaker
from training.distributed import Group
from training.engine import runs
from training.errors import (
    EXIT_CODES,
    CheckFailed,
    ConfigError,
    DeviceFailed,
    ExportRefused,
    FoldFailed,
    Interrupted,
    NonFiniteLoss,
    OutOfMemory,
    ProcessLost,
)
from training.options.config import TrainConfig
from training.options.config_file import from_yaml
from training.signals import Interruption


class Verb(NamedTuple):
    """Where the parts of a command stand, as `module:name` below `training`.

    Only the named command is imported: all of them would take half a second more at each start.
    """

    options: str
    command: str
    """A function that takes the options and returns the folder with its results."""
    summary: str
    """A function that returns, of this folder, what is printed at the end."""

    @property
    def kind(self) -> type[Any]:
        """The class of its options."""
        kind: type[Any] = _imported(self.options)
        return kind


def _imported(name: str) -> Any:
    return pkgutil.resolve_name(f"training.{name}")


VERBS = {
    "train": Verb("options.config:TrainConfig", "train:train", "report.run:run_summary"),
    "audit": Verb("report.audit:AuditConfig", "report.audit:run_audit", "report.audit:audit_summary"),
    "import": Verb(
        "conversion.command:ImportConfig", "conversion.command:import_images", "conversion.command:import_summary"
    ),
    "evaluate": Verb("evaluate:EvaluateConfig", "evaluate:evaluate", "report.evaluation:evaluation_summary"),
    "folds": Verb("folds.config:FoldsConfig", "folds.command:folds", "folds.report:folds_summary"),
    "study": Verb("study.config:StudyConfig", "study.command:study", "study.report:study_summary"),
    "parity": Verb("parity.command:ParityConfig", "parity.command:parity", "report.parity:parity_summary"),
    "reproduce": Verb(
        "reproduction.command:ReproduceConfig",
        "reproduction.command:reproduce",
        "reproduction.command:reproduction_summary",
    ),
    "robustness": Verb(
        "robustness.command:RobustnessConfig", "robustness.command:robustness", "robustness.report:robustness_summary"
    ),
    "dossier": Verb("dossier.command:DossierConfig", "dossier.command:dossier", "dossier.command:dossier_summary"),
    "forget": Verb("forgetting.command:ForgetConfig", "forgetting.command:forget", "forgetting.command:forget_summary"),
    "check": Verb("check.command:CheckConfig", "check.command:check", "check.command:check_summary"),
    "promote": Verb("promotion.command:PromoteConfig", "promotion.command:promote", "promotion.command:latest_summary"),
    "rollback": Verb(
        "promotion.command:RollbackConfig", "promotion.command:rollback", "promotion.command:latest_summary"
    ),
    "publish": Verb(
        "promotion.publication:PublishConfig",
        "promotion.publication:publish",
        "promotion.publication:published_summary",
    ),
    "sign": Verb("signing.command:SignConfig", "signing.command:sign", "signing.command:signing_summary"),
}
INTERRUPTIBLE = ("reproduce", "forget")
"""Commands that train, and leave a checkpoint on a signal."""
CONTINUED = {"train": "a run continues with --resume and its folder, or --resume auto"} | dict.fromkeys(
    ("folds", "study", "reproduce", "forget"), "the same command makes what is missing"
)
"""How a command that was stopped continues; the others begin anew."""
GPU_FAILED = "the GPU or its driver failed; the system's log says more, and `python -m training check` tries all of it"
HINTS: dict[type[BaseException], str] = {
    NonFiniteLoss: "a lower --lr or --precision float32 may help",
    OutOfMemory: "a smaller --batch-size or --image-size or fewer --workers need less; the first two make another run",
    torch.AcceleratorError: GPU_FAILED,
    DeviceFailed: GPU_FAILED,
    ProcessLost: "the run continues from its last checkpoint with --resume and its folder, or --resume auto",
    ExportRefused: "no model was published and `latest` was left as it is",
}


def main(arguments: list[str], opt_ml: Path = sagemaker.ROOT) -> int:
    """Run one command, `train` if none is named, and return its exit code; training/README.md lists the codes.

    `opt_ml` is the folder in which SageMaker, if it started this process, has put the options and the images.
    """
    interruption = Interruption()
    interruption.install()
    verb, rest = (arguments[0], arguments[1:]) if arguments and arguments[0] in VERBS else ("train", arguments)
    by_sagemaker = sagemaker.started(arguments, opt_ml)
    group = Group.from_environment()
    try:
        if by_sagemaker and "RANK" not in os.environ:
            start_together(sagemaker.torchrun(opt_ml, torch.cuda.device_count()), arguments)
        with group:
            config = group.broadcast(lambda: options(verb, sagemaker.options(opt_ml) if by_sagemaker else rest))
            folder = run_command(verb, config, interruption, group)
        if by_sagemaker and group.first:
            sagemaker.finish(folder, opt_ml)
    except tuple(EXIT_CODES) as error:
        interruption.end_at_next()
        cause = next(cause for cause in EXIT_CODES if isinstance(error, cause))
        hints = ([HINTS[cause]] if cause in HINTS else []) + getattr(error, "__notes__", [])
        reason = "\n".join([f"error: {error}", *hints])
        if by_sagemaker:
            sagemaker.fail(reason, opt_ml)
        return group.fail(EXIT_CODES[cause], reason)
    except Interrupted as stop:
        interruption.end_at_next()
        return group.fail(stop.exit_code, "; ".join(filter(None, (str(stop), CONTINUED.get(verb)))))
    except (CheckFailed, FoldFailed) as failed:
        return group.fail(failed.exit_code, f"error: {failed}")
    return 0


def start_together(torchrun: list[str], arguments: list[str]) -> None:
    """Replace this process by torchrun, which signals then reach, unless one process is enough."""
    if torchrun:
        os.execv(torchrun[0], [*torchrun, "-m", "training", *arguments])  # noqa: S606


def run_command(verb: str, config: Any, interruption: Interruption, group: Group) -> Path:
    """Run a command, print its summary in the first process, and return the folder with its results."""
    command, summary = _imported(VERBS[verb].command), _imported(VERBS[verb].summary)  # not after hours of work
    folder: Path
    if verb == "train":
        folder = command(config, interruption, group)
    elif group.size > 1:
        raise ConfigError(f"{verb} runs in one process, not in {group.size} together: start it without torchrun")
    else:
        folder = command(config, *([interruption] if verb in INTERRUPTIBLE else []))
    if group.first:
        print(summary(folder))
    return folder


def options(verb: str, arguments: list[str]) -> Any:
    """The options of a command: those of the command line, over those of --config's file.

    A run to resume keeps its own, and others are refused.

    Raises ConfigError, CheckpointRefused.
    """
    kind, program = VERBS[verb].kind, f"python -m training {verb}"
    if not issubclass(kind, TrainConfig):
        return tyro.cli(kind, prog=program, args=arguments)
    parser = argparse.ArgumentParser(prog=program, add_help=False, allow_abbrev=False)
    parser.add_argument("--config", type=Path)
    known, others = parser.parse_known_args(arguments)
    default = TrainConfig() if known.config is None else from_yaml(known.config)
    if any(argument.partition("=")[0] in ("--init-from", "--init_from") for argument in others):
        default = replace(default, weights=None)  # those that a run of the file has begun with
    if kind is not TrainConfig:
        return tyro.cli(kind, prog=program, args=others, default=kind(**vars(default)))

    def parse(default: TrainConfig) -> TrainConfig:
        return tyro.cli(TrainConfig, prog=program, args=others, default=default)

    requested = parse(default)
    if requested.resume is None:
        return requested
    run = runs.to_resume(requested.resume, requested.out, requested.name)
    return requested if run is None else runs.resumed_config(run, requested, parse, from_file=known.config is not None)


if __name__ == "__main__":
    threading.excepthook = failures.of_thread
    show_every_name()
    code = main(sys.argv[1:])
    # All results are on the disk, and shutting the interpreter down would take some of the seconds after SIGTERM.
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError):
            stream.flush()
    with suppress(OSError):  # it makes the folder where there is none
        shutil.rmtree(get_temp_dir())  # with the sockets of workers
    os._exit(code)
