"""What is asked of a run, as far as it can be refused before the images are read, which may take hours."""

from pathlib import Path

from training.data.inspection.image_set import ordered
from training.data.left_out import LeftOut, check_value
from training.data.sources.source import Source
from training.metrics import costs, operating_points, slices
from training.options.config import TrainConfig
from training.promotion import floors, log


def check(config: TrainConfig) -> None:
    """Refuse what cannot be understood, files that cannot be read, and a promotion that cannot be logged.

    Raises ConfigError, OSError.
    """
    for text in config.floor:
        floors.parse(text)
    operating_points.parse_all(config.operate)
    if config.costs is not None:
        costs.table(config.costs)
    if isinstance(config.augment, Path):
        from training.data.augmentation import pipeline  # noqa: PLC0415 (imports Albumentations)

        pipeline.read(config.augment)
    if config.promote != "never":
        log.check(config.out)


def check_source(config: TrainConfig, source: Source) -> None:
    """Refuse classes, columns and values that the data does not have. Raises ConfigError."""
    classes = ordered(source.labels)
    floors.check_classes(config.floor, classes)
    operating_points.check_names(config.operate, classes)
    if config.costs is not None:
        costs.check_rows(config.costs, classes)
    slices.check_columns(config.slices, source)
    which = None if config.fold is None else LeftOut.of(config.fold)
    if which is not None:
        check_value(source, which)
