"""The command line: `python -m training [train] [options]`. `--help` shows every option with its default."""

import os
import sys

# Before anything imports Albumentations, which otherwise asks the network for a newer version of itself.
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")

import torch
import tyro

from training.config import ConfigError, TrainConfig
from training.export import ExportRefused
from training.report import summary
from training.splits import DataError
from training.train import DeviceMissing, NonFiniteLoss, train

EXIT_CODES: dict[type[BaseException], int] = {
    ConfigError: 2,
    DataError: 3,
    NonFiniteLoss: 4,
    torch.OutOfMemoryError: 5,
    MemoryError: 5,
    OSError: 6,
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
    config = tyro.cli(TrainConfig, prog="python -m training", args=arguments)
    try:
        run = train(config)
    except tuple(EXIT_CODES) as error:
        kind = next(kind for kind in EXIT_CODES if isinstance(error, kind))
        hint = f"\n{HINTS[kind]}" if kind in HINTS else ""
        print(f"error: {error}{hint}", file=sys.stderr)
        return EXIT_CODES[kind]
    print(summary(run))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
