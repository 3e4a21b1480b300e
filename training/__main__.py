"""The command line: `python -m training [train] [options]`. `--help` shows every option with its default."""

import argparse
import os
import sys
from pathlib import Path

# Before anything imports Albumentations, which otherwise asks the network for a newer version of itself.
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")

import torch
import tyro

from training.checkpoint import CheckpointRefused
from training.config import ConfigError, TrainConfig
from training.export import ExportRefused
from training.report import summary
from training.splits import DataError
from training.train import DeviceMissing, NonFiniteLoss, train

PROGRAM = "python -m training"
EXIT_CODES: dict[type[BaseException], int] = {
    ConfigError: 2,
    DataError: 3,
    NonFiniteLoss: 4,
    torch.OutOfMemoryError: 5,
    MemoryError: 5,
    OSError: 6,
    CheckpointRefused: 7,
    ExportRefused: 7,
    DeviceMissing: 8,
}
HINTS: dict[type[BaseException], str] = {
    NonFiniteLoss: "a lower --lr or --precision float32 may help",
    torch.OutOfMemoryError: "a smaller --batch-size or --image-size may help",
    MemoryError: "a smaller --batch-size or --image-size may help",
    ExportRefused: "no model was published and `latest` was left as it is",
}


def main(arguments: list[str]) -> int:
    """Run one command; the exit code says what went wrong (README, exit codes)."""
    if arguments[:1] == ["train"]:
        arguments = arguments[1:]
    try:
        run = train(options(arguments))
    except tuple(EXIT_CODES) as error:
        kind = next(kind for kind in EXIT_CODES if isinstance(error, kind))
        hint = f"\n{HINTS[kind]}" if kind in HINTS else ""
        print(f"error: {error}{hint}", file=sys.stderr)
        return EXIT_CODES[kind]
    print(summary(run))
    return 0


def options(arguments: list[str]) -> TrainConfig:
    """The options of the command line, over those of the file that --config names. Raises ConfigError."""
    parser = argparse.ArgumentParser(prog=PROGRAM, add_help=False, allow_abbrev=False)
    parser.add_argument("--config", type=Path)
    known, others = parser.parse_known_args(arguments)
    default = TrainConfig() if known.config is None else TrainConfig.from_yaml(known.config)
    return tyro.cli(TrainConfig, prog=PROGRAM, args=others, default=default)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
