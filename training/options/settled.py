"""A configuration in which every option has a value: what a run trains by, and what its config.yaml holds."""

import math
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import joblib

from serving.contract.card.model_card import Views
from training.options.choices import SYMMETRIES, Balance, Policy, ScoreName, Symmetry
from training.options.config import TrainConfig, default_name
from training.options.limits import require

COUNT_IMAGES_ALIKE: tuple[ScoreName, ...] = ("accuracy", "log_loss")
"""Scores in which a rare class counts less than a common one."""
LR = {("adamw", "cnn"): 3e-3, ("adam", "cnn"): 3e-3, ("sgd", "cnn"): 0.05}
OTHER_LR = {"adamw": 1e-3, "adam": 1e-3, "sgd": 0.01}
"""Highest learning rates of the MLP and of timm's architectures, by optimizer."""
EPOCHS, PRETRAINED_EPOCHS = 30, 10
DROPOUT, DROP_PATH, LABEL_SMOOTHING = 0.2, 0.2, 0.1
"""Where all of a pretrained backbone learns: without them it knows 96 % of two thousand training images by heart."""
_SIDE = re.compile(
    r"left|right|links|rechts|gauche|droite|izquierda|derecha|sinistra|destra|l|r|od|os"
    r"|(?:anti|counter|counter-)?clockwise|cc?w"
)
WEIGHT_DECAY = {"adamw": 0.05, "adam": 0.0, "sgd": 5e-4}


@dataclass(frozen=True, kw_only=True)
class SettledConfig(TrainConfig):
    """The options of a run after the data is known; none is None that has a default depending on others."""

    # `field()`, because a plain annotation would inherit the base class's default.
    name: str = field()
    image_size: int = field()
    augment: Policy | Path = field()
    augment_on: Literal["device", "workers"] = field()
    symmetry: Symmetry = field()
    views: Views = field()
    balance: Balance = field()
    best_by: ScoreName = field()
    dropout: float = field()
    drop_path: float = field()
    label_smoothing: float = field()
    epochs: int = field()
    batch_size: int = field()
    lr: float = field()
    weight_decay: float = field()
    workers: int = field()

    @property
    def augmented(self) -> bool:
        """Whether training images are changed at random, mixing apart."""
        return self.augment != "none" or self.symmetry != "none"

    @property
    def run(self) -> Path:
        """The run's folder."""
        return self.out / self.name


@dataclass(frozen=True)
class ProcessCounts:
    """How many train together, and how many of them on this machine, whose cores they share."""

    total: int = 1
    here: int = 1


def settle_options(
    config: TrainConfig,
    *,
    training_images: int,
    classes: Sequence[str] = (),
    has_drop_path: bool = False,
    processes: ProcessCounts = ProcessCounts(),
) -> SettledConfig:
    """Decide the options that the user left open, by the other options, the data and the machine.

    The data has decided the model and the size of its input before. `has_drop_path` says whether the model has blocks
    to skip. Raises ConfigError when a batch has too few images for the processes to share.
    """
    assert config.model != "auto"
    assert config.image_size is not None
    cores = max(1, joblib.cpu_count() // processes.here)
    tuned = config.fine_tunes
    augment = config.augment or ("none" if config.model == "mlp" or config.freeze else "strong" if tuned else "light")
    balance = config.balance or _balance(config.best_by, tuned=tuned)
    symmetry = _symmetry(config, augment, classes)
    views = config.views or ("flips" if tuned and symmetry != "none" else "none")
    by_batch = "workers" if isinstance(augment, Path) else "device"
    augment_on = by_batch if config.augment_on == "auto" else config.augment_on
    epochs = config.epochs or (PRETRAINED_EPOCHS if tuned else EPOCHS)
    best = config.best_epoch
    require(best is None or best <= epochs, "best_epoch", f"at most the {epochs} epochs", best)
    by_image = augment_on == "workers" and (augment != "none" or symmetry != "none")
    batch_size = config.batch_size or _batch_size(config.image_size, training_images)
    shared = min(batch_size, training_images)
    needed = processes.total * (2 if config.model == "mlp" and config.normalizes_batches else 1)
    enough = processes.total == 1 or shared >= needed
    require(enough, "batch_size", f"{needed} or more images for {processes.total} processes to share", shared)
    decided: dict[str, Any] = {
        "name": config.name or default_name(config.model),
        "augment": augment,
        "augment_on": augment_on,
        "symmetry": symmetry,
        "views": views,
        "balance": balance,
        "best_by": config.best_by or ("log_loss" if balance == "bias" else "balanced_accuracy"),
        "dropout": _or(config.dropout, DROPOUT if tuned else 0.0),
        "drop_path": _or(config.drop_path, DROP_PATH if tuned and has_drop_path else 0.0),
        "label_smoothing": _or(config.label_smoothing, LABEL_SMOOTHING if tuned else 0.0),
        "batch_norm": config.normalizes_batches if config.own_network else None,
        "epochs": epochs,
        "batch_size": batch_size,
        "weights": None if config.own_network else config.weights or ("default" if config.pretrained else "none"),
        "lr": config.lr or LR.get((config.optimizer, config.model), OTHER_LR[config.optimizer]),
        "weight_decay": _or(config.weight_decay, WEIGHT_DECAY[config.optimizer]),
        "workers": _or(config.workers, min(cores - 1, 8) if by_image else 0),
    }
    return SettledConfig(**asdict(config) | decided)


def _balance(best_by: ScoreName | None, *, tuned: bool) -> Balance:
    if tuned:  # the bias is added after the epoch is chosen, by its log loss
        return "none" if best_by == "accuracy" else "bias"
    return "none" if best_by in COUNT_IMAGES_ALIKE else "sampler"


def _symmetry(config: TrainConfig, augment: Policy | Path, classes: Sequence[str]) -> Symmetry:
    """The symmetry, where it was left open. Raises ConfigError where --views needs one that the classes do not have."""
    views = config.views or "none"
    side, needed = one_sided(classes), SYMMETRIES[views][0]
    not_drawn = config.freeze or isinstance(augment, Path)  # what is drawn is then not for --symmetry to say
    if views != "none" and (config.symmetry is None or not_drawn):
        insisting = "" if not_drawn else f"; --symmetry {needed} beside it says that it does not"
        expected = f"none, as a mirror may change what class {side!r} means{insisting}"
        require(side is None, "views", expected, views)
    if config.symmetry is not None or not_drawn:
        return config.symmetry or "none"
    return "mirror" if views == "none" and config.fine_tunes and side is None else needed


def one_sided(classes: Sequence[str]) -> str | None:
    """The first class whose label a mirror may change: its name states a side, or is one character, as of text."""
    return next((name for name in classes if len(name) == 1 or any(map(_SIDE.fullmatch, _words(name)))), None)


def _words(name: str) -> list[str]:
    return re.split(r"[\W_\d]+", re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name).lower())


def _or(given: Any, otherwise: Any) -> Any:
    return otherwise if given is None else given


def _batch_size(image_size: int, training_images: int) -> int:
    """A 64th of the training images as a power of two, within limits: a smaller batch is mostly overhead."""
    sixty_fourth: int = 2 ** round(math.log2(max(training_images / 64, 1)))
    least = 16 if image_size > 32 else 32
    return min(max(sixty_fourth, least), 64)
