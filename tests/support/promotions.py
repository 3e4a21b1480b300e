"""Runs that are good, poor, of one class or of other classes, trained for real, and folders in which they compete."""

import json
import shutil
from pathlib import Path
from typing import Any

from training.options.config import TrainConfig
from training.train import train

POOR: dict[str, Any] = {"lr": 1e-9, "epochs": 1}
"""Options of a run that learns nothing."""


def options(photos: Path, out: Path, **given: Any) -> TrainConfig:
    common: dict[str, Any] = {"model": "mlp", "hidden": (32,), "image_size": 16, "epochs": 3, "batch_size": 16}
    return TrainConfig(data=photos, out=out, **(common | {"val_fraction": 0.2, "test_fraction": 0.3} | given))


def make(photos: Path, out: Path, **given: Any) -> Path:
    return train(options(photos, out, **given))


def latest(out: Path) -> str | None:
    """What the link says."""
    return str((out / "latest").readlink()) if (out / "latest").is_symlink() else None


def log(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "promotions.jsonl").read_text().splitlines()]


def copied(runs: Path, out: Path) -> Path:
    """A folder of runs to change."""
    return shutil.copytree(runs, out, symlinks=True, ignore=shutil.ignore_patterns(".cache", "tensorboard", "figures"))
