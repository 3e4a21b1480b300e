"""The options of a run once its data is read: none is left open, and copies of the files that they name are kept."""

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from training.data.dataset import Dataset
from training.distributed import Group
from training.folds import final
from training.metrics import costs
from training.models import backbones, weights
from training.models.weights import Weights
from training.options.choices import Symmetry
from training.options.config import TrainConfig
from training.options.rules import in_vain
from training.options.settled import ProcessCounts, SettledConfig, one_sided, settle_options
from training.validation import check_dataset


def decide_options(config: TrainConfig, dataset: Dataset, pretrained: Weights | None, group: Group) -> SettledConfig:
    """The settled options; files that they name are copied into the run's folder, so that the run can be repeated.

    Raises ConfigError where an option does not fit the data or the number of processes.
    """
    config = final.with_best_epoch(config)
    check_dataset(config, dataset)
    settled = settle_options(
        weights.normalized(config, pretrained) if pretrained else config,
        training_images=len(dataset.splits["train"]),
        classes=dataset.classes,
        has_drop_path=config.fine_tunes and backbones.has_drop_path(config.model),
        processes=ProcessCounts(group.size, group.local_size),
    )
    final.check(settled, dataset)
    for sentence in in_vain(settled):
        print(f"warning: {sentence}")
    settled = _with_kept_costs(settled, dataset.classes)
    chosen = config.fine_tunes or (settled.views != "none" and not config.freeze)
    if config.symmetry is None and chosen and not isinstance(settled.augment, Path):
        print(f"auto   --symmetry {settled.symmetry} ({_why(settled.symmetry, dataset.classes)})")
    if config.balance is None and settled.balance == "none":
        print(f"auto   --balance none (--best-by {settled.best_by} counts each image alike, whatever its class)")
    if config.views is None and settled.views != "none":
        print(
            f"auto   --views {settled.views} (answers are the mean over an image and its mirror image, which takes "
            "twice as long; none, where time counts more)"
        )
    return _with_kept_pipeline(settled)


def _with_kept_costs(config: SettledConfig, classes: Sequence[str]) -> SettledConfig:
    if config.costs is None:
        return config
    matrix, kept = costs.read(config.costs, classes), config.run / "costs.csv"
    costs.write(kept, matrix, classes)
    return replace(config, costs=kept)


def _with_kept_pipeline(config: SettledConfig) -> SettledConfig:
    if not isinstance(config.augment, Path):
        return config
    kept = config.run / f"augment{config.augment.suffix}"
    if config.augment != kept:  # they are equal when the run resumes
        shutil.copyfile(config.augment, kept)
    return replace(config, augment=kept)


def _why(symmetry: Symmetry, classes: Sequence[str]) -> str:
    if symmetry == "none":
        return f"a mirror may change what class {one_sided(classes)!r} means"
    if symmetry == "square":
        return "images are mirrored and turned at random, as --views turns says that it changes no label"
    return "left and right are swapped at random; none, where that changes a label"
