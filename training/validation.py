"""The checks of a training's options that need more than the options: files, then the list of images, then the images.

Each comes as early as it can, because reading the images may take hours.
"""

from pathlib import Path

from training.data.dataset import Dataset
from training.data.inspection.image_set import ordered
from training.data.left_out import LeftOut, check_value
from training.data.sources.source import Source
from training.metrics import costs, operating_points, slices
from training.options.config import TrainConfig
from training.promotion import floors, log


def check_options(config: TrainConfig) -> None:
    """Refuse what cannot be parsed, files that cannot be read, and a promotion that cannot be logged.

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


def check_dataset(config: TrainConfig, dataset: Dataset) -> None:
    """Refuse what the readable images and their splits do not allow: a class may have none. Raises ConfigError."""
    floors.check_classes(config.floor, dataset.classes)
    slices.slices(dataset, config.slices, dataset.splits["test"])
    operating_points.check_classes(config.operate, dataset.classes, dataset.labels[dataset.splits["val"]], dataset.name)
    if config.costs is not None:
        costs.read(config.costs, dataset.classes)
    if isinstance(config.augment, Path):
        from training.data.augmentation import pipeline  # noqa: PLC0415 (imports Albumentations)

        pipeline.check(config.augment, dataset.preprocessing.height, dataset.preprocessing.channels)
