"""Everything a run can be told: one frozen dataclass, from which the command line is made."""

import json
import math
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, get_type_hints

import joblib
import yaml
from pydantic import TypeAdapter, ValidationError
from tyro.conf import DisallowNone

from serving.contract.card import NormalizationMode
from serving.contract.decode import Channels, Interpolation
from serving.contract.image_header import MIN_SIDE
from training.errors import ConfigError

Activation = Literal["relu", "leaky_relu", "gelu", "tanh", "sigmoid"]
Init = Literal["default", "constant", "uniform", "normal", "xavier_uniform", "xavier_normal", "he_uniform", "he_normal"]
OptimizerName = Literal["adamw", "adam", "sgd"]
ScheduleName = Literal["cosine", "constant", "step"]
Balance = Literal["none", "loss", "sampler"]
Policy = Literal["none", "light", "strong"]
Symmetry = Literal["none", "mirror", "square"]
Leaks = Literal["drop", "error", "warn"]
Quantize = Literal["none", "int8"]
ScoreName = Literal["balanced_accuracy", "accuracy", "macro_f1", "roc_auc", "log_loss"]

ALIKE: tuple[ScoreName, ...] = ("balanced_accuracy", "macro_f1")
"""Scores in which a rare class counts as much as a common one."""
PIPELINE_ENDINGS = (".yaml", ".yml", ".json")
LR = {("adamw", "cnn"): 3e-3, ("adamw", "mlp"): 1e-3, ("adam", "cnn"): 3e-3, ("adam", "mlp"): 1e-3,
      ("sgd", "cnn"): 0.05, ("sgd", "mlp"): 0.01}  # fmt: skip
WEIGHT_DECAY = {"adamw": 0.05, "adam": 0.0, "sgd": 5e-4}


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Train an image classifier, evaluate it on held-out images, export it to ONNX, prove the export, report.

    With no options it trains on the handwritten digits that ship inside scikit-learn. Afterwards `bentoml serve`
    serves the result, and `python -m training evaluate --help` says how to score it on other images. --config FILE
    reads options from a YAML file, such as a run's config.yaml; those of the command line win.
    """

    data: Path | None = None
    """Images with labels: a folder of class folders; a folder with train/, val/ and perhaps test/ of class folders; a
    CSV manifest with columns path, label and perhaps split, group; or an .npz in the MedMNIST layout. None: digits."""
    out: Path = Path("runs")
    """Folder in which runs are kept."""
    name: str | None = None
    """Name of this run, its folder in --out. None: date, time and model."""
    resume: str | None = None
    """Go on with a run that was stopped: its folder, or auto for the run of --name, or without a name the newest in
    --out that is not finished; auto begins a new run where there is none. The run's own options hold."""
    cache: Path | None = None
    """Folder in which decoded images and what was found in them are kept, for all runs that are told of it. It may be
    removed at any time. None: .cache in --out."""

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
    images_per_class: int | None = None
    """Train on at most this many images of each class, drawn by --seed, to see what fewer images cost; validation and
    test stay as they are. None: all."""
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
    augment: Policy | Path | None = None
    """Random changes of the training images. light: small shifts, turns, scales, brightness; strong: larger and more
    often, also colour and a cut-out; or a file written by Albumentations' A.save (.yaml, .json). None: light for the
    CNN, none for the MLP."""
    symmetry: Symmetry = "none"
    """What leaves the label of an image as it is, and is therefore done to training images at random. mirror: swap left
    and right; square: also up and down, and turn by quarters, where no direction is up, as under a microscope."""
    mixup: float = 0.0
    """Mix each image and its label with another's, by a share from Beta(a, a) with this a; 0: not (Zhang et al. 2018).
    With --cutmix too, each batch takes one of the two at random."""
    cutmix: float = 0.0
    """Put a box of another image into each, its area a share from Beta(a, a) with this a, and mix the labels by area;
    0: not (Yun et al. 2019)."""
    balance: Balance | None = None
    """What to do about classes of different size. loss: weigh each image by the inverse of its class's frequency;
    sampler: draw the classes equally often. None: sampler where --best-by counts all classes alike, else none."""

    model: Literal["mlp", "cnn"] = "cnn"
    """mlp: Flatten, then the layers of --hidden. cnn: a small residual network."""
    hidden: tuple[int, ...] = (512, 128)
    """Widths of the hidden layers of the MLP."""
    width: int = 32
    """Channels of the first stage of the CNN; the later stages have twice and four times as many. 16, 32 and 64 make
    it small, medium and large: 0.08, 0.31 and 1.2 million weights."""
    activation: Activation = "relu"
    """What follows every layer but the last."""
    batch_norm: DisallowNone[bool | None] = None
    """Batch normalisation before every activation. None: for the CNN, not for the MLP."""
    dropout: float = 0.0
    """Share of activations dropped before the last layer of the CNN, after every hidden layer of the MLP."""
    init: Init = "default"
    """How weights start. default: as PyTorch does, in the CNN by He et al. with residual blocks that add nothing;
    constant: all 0.01; uniform, normal: by --init-scale; xavier: Glorot and Bengio (2010); he: He et al. (2015).
    Normalisation layers are left alone."""
    init_scale: float = 0.05
    """Bound of the weights of --init uniform, deviation of those of normal."""
    zero_biases: DisallowNone[bool | None] = None
    """Start biases at zero, not as PyTorch does, within one over the root of the inputs. None: with all --init but
    default."""
    init_from: Path | None = None
    """A run's folder or its .pt file whose weights to start from; the last layer is new when the classes differ."""
    freeze: bool = False
    """Train the last layer alone, on what --init-from brings."""

    epochs: int = 30
    """Passes over the training images."""
    batch_size: int | None = None
    """Images a batch. None: a 64th of the training images, as a power of two from 16 (32 up to 32 px) to 64."""
    accumulate: int = 1
    """Batches whose gradients are averaged into one step of the optimizer."""
    optimizer: OptimizerName = "adamw"
    """adamw; adam; sgd: with Nesterov momentum 0.9."""
    lr: float | None = None
    """Highest learning rate, reached after the warm-up. None: 3e-3 for the CNN, 1e-3 for the MLP; with sgd 0.05 and
    0.01."""
    schedule: ScheduleName = "cosine"
    """The learning rate after the warm-up. cosine: lowered to zero; constant; step: a tenth from half of all steps on,
    a hundredth from three quarters."""
    warmup_epochs: float = 1.0
    """Epochs over which the learning rate rises from zero."""
    weight_decay: float | None = None
    """Decay of weights of more than one dimension: AdamW's, or with adam and sgd an L2 penalty. None: 0.05 with adamw,
    0 with adam, 5e-4 with sgd."""
    label_smoothing: float = 0.0
    """Share of each label spread over all classes."""
    clip_norm: float | None = None
    """Scale gradients down to this norm where theirs is larger. None: never."""
    ema: float = 0.0
    """Score, keep and export a moving average of the weights with this decay a step, less in the first steps; 0: the
    weights themselves."""
    best_by: ScoreName = "balanced_accuracy"
    """Score on the validation split that decides which epoch is exported and when to stop."""
    patience: int | None = None
    """Stop after this many epochs without a better validation score. None: run all epochs."""
    confidence_level: float = 0.9
    """How often the prediction sets shall hold the true class."""

    quantize: Quantize = "none"
    """int8: also export model.int8.onnx, weights and activations in eight bits, if it gives at least 99 % of the test
    images the label that model.onnx gives them."""

    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Arithmetic of training; auto takes bfloat16 where the device computes in it. Scores are always float32."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to train; auto takes the GPU when there is one."""
    workers: int | None = None
    """Processes that prepare batches; 0 prepares them in the training process. None: one less than the cores when
    images are augmented, else 0."""
    worker_timeout: float = 120.0
    """Seconds to wait for a batch before the process that prepares it counts as hanging and the run ends; 0: for ever.
    Far more than a batch takes: slow network disks and pipelines of one's own need it."""
    seed: int = 0
    """Fixes the split, the initial weights, the order of the images and their augmentation."""

    def __post_init__(self) -> None:
        """Raise ConfigError naming the option, what was expected and what came."""
        for field in (
            "epochs",
            "width",
            "init_scale",
            "accumulate",
            "max_pixel_value",
            "val_fraction",
            "test_fraction",
        ):
            _require(getattr(self, field) > 0, field, "above 0", getattr(self, field))
        for field in ("dropout", "label_smoothing", "confidence_level", "ema"):
            _require(0 <= getattr(self, field) < 1, field, "at least 0 and below 1", getattr(self, field))
        for field in ("mixup", "cutmix", "warmup_epochs", "worker_timeout", "seed"):
            _require(getattr(self, field) >= 0, field, "0 or more", getattr(self, field))
        for field in ("lr", "clip_norm"):
            value = getattr(self, field)
            _require(value is None or value > 0, field, "above 0", value)
        least_of = {
            "images_per_class": 1,
            "batch_size": 1,
            "patience": 1,
            "workers": 0,
            "weight_decay": 0,
            "image_size": MIN_SIDE,
        }
        for field, least in least_of.items():
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
        _require(
            not isinstance(self.augment, Path) or self.augment.suffix in PIPELINE_ENDINGS,
            "augment",
            f"none, light, strong or a file that ends in {', '.join(PIPELINE_ENDINGS)}",
            self.augment,
        )
        _require(
            self.symmetry == "none" or not isinstance(self.augment, Path),
            "symmetry",
            "none beside a file of --augment, which has what changes it wants",
            self.symmetry,
        )
        _require(not self.freeze or self.init_from is not None, "freeze", "--init-from beside it", "none")
        _require(
            not (self.model == "mlp" and self.batch_norm and self.batch_size == 1),
            "batch_size",
            "2 or more with --batch-norm",
            1,
        )

    def settled(
        self, *, image_size: int, training_images: int, processes: int = 1, on_this_machine: int = 1
    ) -> "TrainConfig":
        """Every option that was left open, decided; this is what `config.yaml` and the model card hold.

        Raises ConfigError when a batch has too few images for so many `processes` to share.
        """
        cores = max(1, joblib.cpu_count() // on_this_machine)
        augment = self.augment or ("light" if self.model == "cnn" else "none")
        changed = augment != "none" or self.symmetry != "none"
        sixtyfourth = 2 ** round(math.log2(max(training_images / 64, 1)))
        least = 16 if image_size > 32 else 32  # below, a step is mostly overhead
        batch_size = self.batch_size or min(max(sixtyfourth, least), 64)
        shared = min(batch_size, training_images)
        needed = processes * (2 if self.model == "mlp" and self.normalizes_batches else 1)
        enough = processes == 1 or shared >= needed
        _require(enough, "batch_size", f"{needed} or more images for {processes} processes to share", shared)
        return replace(
            self,
            image_size=image_size,
            augment=augment,
            balance=self.balance or ("sampler" if self.best_by in ALIKE else "none"),
            batch_norm=self.normalizes_batches,
            batch_size=batch_size,
            lr=self.lr or LR[self.optimizer, self.model],
            weight_decay=WEIGHT_DECAY[self.optimizer] if self.weight_decay is None else self.weight_decay,
            workers=self.workers if self.workers is not None else (min(cores - 1, 8) if changed else 0),
        )

    @property
    def normalizes_batches(self) -> bool:
        """Whether the network has batch normalisation, by option or by model."""
        return self.model == "cnn" if self.batch_norm is None else self.batch_norm

    @property
    def mixes(self) -> bool:
        """Whether images are mixed with one another."""
        return self.mixup > 0 or self.cutmix > 0

    @property
    def run(self) -> Path:
        """The run's folder."""
        assert self.name is not None
        return self.out / self.name

    def to_yaml(self) -> str:
        """The configuration as a person would read it and `from_yaml` does: all but the run's name."""
        values = {key: str(value) if isinstance(value, Path) else value for key, value in asdict(self).items()}
        values = {key: list(value) if isinstance(value, tuple) else value for key, value in values.items()}
        del values["name"], values["resume"]
        return yaml.safe_dump(values, sort_keys=False)


def from_yaml(path: Path) -> TrainConfig:
    """Options from a YAML file, such as a run's `config.yaml`. Raises ConfigError naming file and key."""
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"--config {path}: not a YAML file that can be read ({error})") from error
    if not isinstance(values, dict):
        raise ConfigError(f"--config {path}: expected options, `name: value` a line, got {values!r}")
    given = {key: option(key, value, f"--config {path}") for key, value in values.items()}
    try:
        return TrainConfig(**given)
    except ConfigError as error:
        raise ConfigError(f"--config {path}: {error}") from error


def option(name: str, value: object, where: str) -> Any:
    """The value of an option that was written in a file, as its type. Raises ConfigError beginning with `where`."""
    types = get_type_hints(TrainConfig)
    if name not in types:
        raise ConfigError(f"{where}: there is no option {name!r}; there are {', '.join(types)}")
    return _typed(types[name], value, f"{where}: {name}")


def default_name(model: str) -> str:
    """Date, time (UTC) and model: sorts by age."""
    return f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{model}"


def _typed(kind: Any, value: object, where: str) -> object:
    """The value as the type of its option; a truth value is no number, and no number is one."""
    try:
        # By way of JSON, because in it a list may become a tuple and a string a path.
        typed: object = TypeAdapter(kind).validate_json(json.dumps(value, default=str))
    except ValidationError as error:
        raise ConfigError(f"{where}: {error.errors()[0]['msg']}, got {value!r}") from error
    if isinstance(value, bool) != isinstance(typed, bool):
        raise ConfigError(f"{where}: expected {getattr(kind, '__name__', kind)}, got {value!r}")
    return typed


def _require(holds: bool, field: str, expected: str, value: object) -> None:
    if not holds:
        raise ConfigError(f"--{field.replace('_', '-')}: expected {expected}, got {value}")
