"""Everything a run can be told: one frozen dataclass, from which the command line is made."""

import math
import os
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

import yaml

from serving.contract import MIN_SIDE, Channels, Interpolation, NormalizationMode
from training.splits import Leaks


class ConfigError(ValueError):
    """An option that cannot be followed; the message says what was expected and what came."""


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Train an image classifier, evaluate it on held-out images, export it to ONNX, prove the export, report.

    With no options it trains on the handwritten digits that ship inside scikit-learn. Afterwards `bentoml serve`
    serves the result, and `python -m training evaluate --help` says how to score it on other images.
    """

    data: Path | None = None
    """Images with labels: a folder of class folders; a folder with train/, val/ and perhaps test/ of class folders; a
    CSV manifest with columns path, label and perhaps split, group; or an .npz in the MedMNIST layout. None: digits."""
    out: Path = Path("runs")
    """Folder in which runs are kept."""
    name: str | None = None
    """Name of this run, its folder in --out. None: date, time and model."""

    image_size: int | None = None
    """Side in pixels to which images are stretched. None: the images' own size when all share one of at most 64 px,
    else 64."""
    channels: Channels = 3
    """3 for colour, 1 for gray; images are converted."""
    interpolation: Interpolation = "area"
    """How images are resized (OpenCV's INTER_AREA or INTER_LINEAR)."""
    val_fraction: float = 0.15
    """Share of the images held out for validation when the data brings no such split."""
    test_fraction: float = 0.15
    """Share of the images held out for the test when the data brings no such split."""
    leaks: Leaks = "drop"
    """What to do when one picture or group is in two splits or under two labels. drop: take it out of training, and
    what has two labels out altogether; error: stop; warn: leave it and say so."""

    normalization: NormalizationMode = "standard"
    """Mode of A.Normalize, computed by the model's first layer."""
    mean_std: Literal["imagenet", "dataset"] = "imagenet"
    """Where mean and deviation of the mode `standard` come from: ImageNet, or measured on the training split."""
    mean: tuple[float, ...] = ()
    """Mean of each channel as a share of --max-pixel-value, instead of --mean-std."""
    std: tuple[float, ...] = ()
    """Standard deviation of each channel as a share of --max-pixel-value, instead of --mean-std."""
    max_pixel_value: float = 255.0
    """Pixel value that counts as 1 for mean and standard deviation."""
    augment: Literal["none", "light", "strong"] | None = None
    """Random changes of the training images. light: small shifts, turns, scales, brightness; strong: also flips,
    quarter turns, colour, blur and cut-outs. None: light for the CNN, none for the MLP."""

    model: Literal["mlp", "cnn"] = "cnn"
    """mlp: Flatten, then the layers of --hidden. cnn: a small residual network."""
    hidden: tuple[int, ...] = (512, 128)
    """Widths of the hidden layers of the MLP."""
    width: int = 32
    """Channels of the first stage of the CNN; the later stages have twice and four times as many."""
    dropout: float = 0.0
    """Share of activations dropped before the last layer of the CNN, after every hidden layer of the MLP."""

    epochs: int = 30
    """Passes over the training images."""
    batch_size: int | None = None
    """Images a step. None: a 64th of the training images, as a power of two from 16 (32 up to 32 px) to 64."""
    lr: float | None = None
    """Highest learning rate of AdamW, reached after the warm-up, then lowered along a cosine to zero. None: 3e-3 for
    the CNN, 1e-3 for the MLP."""
    weight_decay: float = 0.05
    """Weight decay of AdamW, on weights of more than one dimension."""
    warmup_epochs: float = 1.0
    """Epochs over which the learning rate rises from zero."""
    label_smoothing: float = 0.0
    """Share of each label spread over all classes."""
    confidence_level: float = 0.9
    """How often the prediction sets shall hold the true class."""
    patience: int | None = None
    """Stop after this many epochs without a better validation score. None: run all epochs."""

    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Arithmetic of training; auto takes bfloat16 where the device computes in it. Scores are always float32."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to train; auto takes the GPU when there is one."""
    workers: int | None = None
    """Processes that prepare batches; 0 prepares them in the training process. None: one less than the cores when
    images are augmented, else 0."""
    seed: int = 0
    """Fixes the split, the initial weights, the order of the images and their augmentation."""

    def __post_init__(self) -> None:
        """Raise ConfigError naming the option, what was expected and what came."""
        positive = ("epochs", "width", "max_pixel_value", "val_fraction", "test_fraction")
        shares = ("dropout", "label_smoothing", "confidence_level")
        for field in positive:
            _require(getattr(self, field) > 0, field, "above 0", getattr(self, field))
        for field in shares:
            _require(0 <= getattr(self, field) < 1, field, "at least 0 and below 1", getattr(self, field))
        for field in ("weight_decay", "warmup_epochs", "seed"):
            _require(getattr(self, field) >= 0, field, "0 or more", getattr(self, field))
        _require(self.lr is None or self.lr > 0, "lr", "above 0", self.lr)
        for field, least in {"batch_size": 1, "patience": 1, "workers": 0, "image_size": MIN_SIDE}.items():
            value = getattr(self, field)
            _require(value is None or value >= least, field, f"{least} or more", value)
        held_out = self.val_fraction + self.test_fraction
        _require(held_out < 1, "val_fraction and test_fraction", "together below 1", held_out)
        _require(all(width > 0 for width in self.hidden), "hidden", "widths above 0", self.hidden)
        _require(len(self.mean) == len(self.std), "mean and std", "of the same length", (self.mean, self.std))
        _require(len(self.mean) in (0, self.channels), "mean and std", f"of {self.channels} number(s)", self.mean)
        _require(all(value > 0 for value in self.std), "std", "above 0", self.std)
        _require(
            self.name is None or Path(self.name).name == self.name, "name", "a folder's name, not a path", self.name
        )

    def settled(self, *, image_size: int, training_images: int) -> "TrainConfig":
        """Every option that was left open, decided; this is what `config.yaml` and the model card hold."""
        cores = len(os.sched_getaffinity(0))
        augment = self.augment or ("light" if self.model == "cnn" else "none")
        sixtyfourth = 2 ** round(math.log2(max(training_images / 64, 1)))
        least = 16 if image_size > 32 else 32  # below, a step is mostly overhead
        return replace(
            self,
            image_size=image_size,
            augment=augment,
            batch_size=self.batch_size or min(max(sixtyfourth, least), 64),
            lr=self.lr or (3e-3 if self.model == "cnn" else 1e-3),
            workers=self.workers if self.workers is not None else (0 if augment == "none" else min(cores - 1, 8)),
        )

    @property
    def run(self) -> Path:
        """The run's folder."""
        assert self.name is not None
        return self.out / self.name

    def to_yaml(self) -> str:
        """The configuration as a person would read it."""
        values = {key: str(value) if isinstance(value, Path) else value for key, value in asdict(self).items()}
        values = {key: list(value) if isinstance(value, tuple) else value for key, value in values.items()}
        return yaml.safe_dump(values, sort_keys=False)


def default_name(model: str) -> str:
    """Date, time (UTC) and model: sorts by age."""
    return f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{model}"


def _require(holds: bool, field: str, expected: str, value: object) -> None:
    if not holds:
        raise ConfigError(f"--{field.replace('_', '-')}: expected {expected}, got {value}")
