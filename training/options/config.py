"""The options of a training run: one frozen dataclass, from which tyro makes the command line."""

from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Literal

import yaml
from tyro.conf import DisallowNone, UseAppendAction

from serving.contract.card.model_card import NormalizationMode, Views
from serving.contract.decode import NEUTRAL, Channels, Fit, Interpolation
from serving.contract.objects import Url
from training.options.choices import (
    LAYER_OPTIONS,
    OWN_NETWORKS,
    Activation,
    Balance,
    Data,
    DepthRule,
    Init,
    Leaks,
    OptimizerName,
    Policy,
    Promote,
    Quantize,
    ScheduleName,
    ScoreName,
    Symmetry,
)
from training.options.limits import AtLeastOne, Byte, NotNegative, Positive, Seed, Share, Side, UpToOne, check_limits
from training.options.rules import check_rules


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Train an image classifier, evaluate it on held-out images, export it to ONNX, prove the export, report.

    With no options it trains on the handwritten digits that ship inside scikit-learn. Afterwards `bentoml serve
    --host 127.0.0.1` serves the result, and `python -m training evaluate --help` says how to score it on other images.
    --config FILE reads options from a YAML file, such as a run's config.yaml; those of the command line win.
    """

    data: Data | None = None
    """Images with labels: a folder of class folders; a folder with train/, val/ and perhaps test/ of class folders; a
    CSV manifest with columns path, label and perhaps split, group; or an .npz in the MedMNIST layout. The same at a URL
    (s3://, gs://) is copied into --cache. None: digits."""
    corrections: Path | None = None
    """A CSV file with columns path and label, whose labels replace those of the data: an edited label-issues.csv."""
    out: Path = Path("runs")
    """Folder in which runs are kept."""
    name: str | None = None
    """Name of this run, its folder in --out. None: date, time and model."""
    resume: str | None = None
    """Continue a run that was stopped: its folder, or auto for the run of --name, or without a name the newest in
    --out that is not finished; auto begins a new run if there is none. The run keeps its own options."""
    cache: Path | None = None
    """Folder for decoded images and the results of their audit, shared by all runs that name it. It may be removed at
    any time. None: .cache in --out."""

    image_size: Annotated[int, Side] | None = None
    """Side in pixels to which images are resized. None: for mlp and cnn the images' own size when all share one of at
    most 64 px, else 64; for a timm architecture 128, or its own where that is fixed, and with --freeze."""
    channels: Channels = 3
    """3 for colour, 1 for gray; images are converted."""
    interpolation: Interpolation = "area"
    """How images are resized (OpenCV's INTER_AREA or INTER_LINEAR)."""
    fit: Fit = "stretch"
    """How an image that is not square becomes square. stretch: its proportions change; pad: it is centred on a ground
    of --fill; crop: its centre is taken."""
    fill: Annotated[int, Byte] = NEUTRAL
    """Value of the ground with --fit pad, in every channel. The default is near the mean of photographs."""
    depth: DepthRule = "auto"
    """How values of more than 8 bits become 8. range: all 65,536 values alike; percentile: those between the 0.5th and
    the 99.5th percentile of the training split; auto: range, if these two are at least half of it apart."""
    val_fraction: Annotated[float, Positive] = 0.15
    """Share of the images held out for validation when the data brings no such split."""
    test_fraction: Annotated[float, Positive] = 0.15
    """Share of the images held out for the test when the data brings no such split."""
    fold: str | None = None
    """i/n: the test split is the i-th of n parts of all images, whatever splits they bring. The parts are drawn by
    --seed, stratified, and part no group. COLUMN=VALUE: the test split is the images with this value of a column of the
    manifest, such as site=Graz."""
    from_folds: Path | None = None
    """Folder of finished folds of the same data, as `folds --final` gives it: train on all images, and take scores,
    temperature, bias, prediction sets and operating points from the folds' answers to images that they have not seen.
    The scores are then of the folds' models."""
    images_per_class: Annotated[int, AtLeastOne] | None = None
    """Train on at most this many images of each class, drawn by --seed, to see what fewer images cost; validation and
    test stay as they are. None: all."""
    leaks: Leaks = "drop"
    """What to do when one picture or group is in two splits or under two labels. drop: take it out of training, and out
    of validation what is in the test split, and what has two labels out of all; error: stop; warn: leave it and say
    so."""

    normalization: NormalizationMode = "standard"
    """Mode of A.Normalize, computed by the model's first layer."""
    mean_std: Literal["imagenet", "dataset"] | None = None
    """Where mean and deviation of the mode `standard` come from: ImageNet, or measured on the training split. None:
    those that the weights were trained with, pretrained or of --init-from, else ImageNet's."""
    mean: tuple[float, ...] = ()
    """Mean of each channel as a share of --max-pixel-value, instead of --mean-std."""
    std: tuple[Annotated[float, Positive], ...] = ()
    """Standard deviation of each channel as a share of --max-pixel-value, instead of --mean-std."""
    max_pixel_value: Annotated[float, Positive] = 255.0
    """Pixel value that counts as 1 for mean and standard deviation."""
    augment: Policy | Path | None = None
    """Random changes of the training images. light: small shifts, turns, scales, brightness; strong: larger and more
    often, also colour and a cut-out; or a file written by Albumentations' A.save (.yaml, .json). None: none for the MLP
    and with --freeze, strong where all of a pretrained backbone learns, else light."""
    augment_on: Literal["auto", "device", "workers"] = "auto"
    """Where light, strong and --symmetry are applied. device: to whole batches, on the GPU, or on CPUs by OpenCV;
    workers: image by image by Albumentations, which draws from the same distributions; auto: workers with a file of
    --augment, else device."""
    symmetry: Symmetry | None = None
    """What leaves the label of an image as it is, and is therefore done to training images at random. mirror: swap left
    and right; square: also up and down, and turn by quarters, where no direction is up, as under a microscope. None:
    mirror where all of a pretrained backbone learns, unless a class's name states a side or is one character; with a
    file of --augment, and else, none."""
    mixup: Annotated[float, NotNegative] = 0.0
    """Mix each image and its label with another's, by a share from Beta(a, a) with this a; 0: not (Zhang et al. 2018).
    With --cutmix too, each batch takes one of the two at random."""
    cutmix: Annotated[float, NotNegative] = 0.0
    """Put a box of another image into each, its area a share from Beta(a, a) with this a, and mix the labels by area;
    0: not (Yun et al. 2019)."""
    balance: Balance | None = None
    """What to do about classes of different size. loss: weigh each image by the inverse of its class's frequency;
    logits: add the log of this frequency to the logits that are trained (Menon et al. 2021), so that the model learns
    what speaks for a class beside its frequency; sampler: draw the classes equally often; bias: train on them as often
    as they are, then give each class's logit a share of minus the log of its frequency, the share of 0 to 1 with the
    smallest log loss of an image and of a class together on validation images. None: where all of a pretrained
    backbone learns, bias, with --best-by accuracy none; else sampler, with accuracy or log_loss none."""

    model: str = "auto"
    """mlp: Flatten, then the layers of --hidden. cnn: a small residual network. Or a timm architecture, such as
    resnet18 or convnext_atto.d2_in1k. auto: tf_efficientnet_lite0 with pretrained weights for photographs (median
    shorter side of 96 px or more), mlp beside --hidden, cnn for smaller images or beside another option of the own
    networks' layers; with --init-from the model of that run."""
    weights: Literal["default", "none"] | Path | None = None
    """Pretrained weights of a timm architecture. default: its own, from an installed package or the Hugging Face hub;
    none; or a file that ends in .safetensors, .pth, .pt or .bin. None: default, unless --init-from is given."""
    hidden: tuple[Annotated[int, Positive], ...] = (512, 128)
    """Widths of the hidden layers of the MLP."""
    width: Annotated[int, Positive] = 32
    """Channels of the first stage of the CNN; the later stages have twice and four times as many. 16, 32 and 64 make
    it small, medium and large: 0.08, 0.31 and 1.2 million weights."""
    activation: Activation = "relu"
    """What follows every layer but the last."""
    batch_norm: DisallowNone[bool | None] = None
    """Batch normalisation before every activation. None: for the CNN, not for the MLP."""
    dropout: Annotated[float, Share] | None = None
    """Share of activations dropped before the last layer, in the MLP after every hidden layer. None: 0.2 where all of a
    pretrained backbone learns, else 0."""
    drop_path: Annotated[float, Share] | None = None
    """Share of the residual blocks of a timm architecture that are skipped at random, more in later blocks (stochastic
    depth, Huang et al. 2016). None: 0.2 where all of a pretrained backbone learns and the architecture has it, else
    0."""
    init: Init = "default"
    """How weights start. default: as PyTorch does, in the CNN by He et al. with residual blocks that add nothing;
    constant: all 0.01; uniform, normal: by --init-scale; xavier: Glorot and Bengio (2010); he: He et al. (2015).
    Normalisation layers are left alone."""
    init_scale: Annotated[float, Positive] = 0.05
    """Bound of the weights of --init uniform, deviation of those of normal."""
    zero_biases: DisallowNone[bool | None] = None
    """Start biases at zero, not as PyTorch does, within one over the root of the inputs. None: with all --init but
    default."""
    init_from: Path | None = None
    """A run's folder or its .pt file whose weights to start from; the last layer is new when the classes differ."""
    freeze: bool = False
    """Train the last layer alone, on features that pretrained weights or --init-from bring. They are computed once, so
    images are not augmented or mixed."""

    epochs: Annotated[int, Positive] | None = None
    """Passes over the training images. None: 10 where all of a pretrained backbone learns, else 30."""
    batch_size: Annotated[int, AtLeastOne] | None = None
    """Images a batch. None: a 64th of the training images, as a power of two from 16 (32 up to 32 px) to 64."""
    accumulate: Annotated[int, Positive] = 1
    """Batches whose gradients are averaged into one step of the optimizer."""
    optimizer: OptimizerName = "adamw"
    """adamw; adam; sgd: with Nesterov momentum 0.9."""
    lr: Annotated[float, Positive] | None = None
    """Highest learning rate, reached after the warm-up. None: 3e-3 for the CNN, 1e-3 for the MLP and for timm's
    architectures; with sgd 0.05, 0.01 and 0.01."""
    body_lr: Annotated[float, Positive] = 1.0
    """Learning rate of all layers but the last, as a share of --lr."""
    freeze_epochs: Annotated[int, NotNegative] = 0
    """Epochs at the start in which the last layer alone learns. The others are then as when they predict: without
    dropout, and with batch statistics that stay. Afterwards they have a warm-up of their own."""
    schedule: ScheduleName = "cosine"
    """The learning rate after the warm-up. cosine: lowered to zero; constant; step: a tenth from half of all steps on,
    a hundredth from three quarters."""
    warmup_epochs: Annotated[float, NotNegative] = 1.0
    """Epochs over which the learning rate rises from zero."""
    weight_decay: Annotated[float, NotNegative] | None = None
    """Decay of weights of more than one dimension, but those that timm exempts, such as positions: AdamW's, or with
    adam and sgd an L2 penalty. None: 0.05 with adamw, 0 with adam, 5e-4 with sgd."""
    label_smoothing: Annotated[float, Share] | None = None
    """Share of each label spread over the classes, by how often each is in the training split; equally where
    --balance makes classes count alike (sampler, loss). None: 0.1 where all of a pretrained backbone learns, else 0."""
    clip_norm: Annotated[float, Positive] | None = None
    """Scale gradients down to this norm where theirs is larger. None: never."""
    ema: Annotated[float, Share] = 0.0
    """Score, keep and export a moving average of the weights with this decay a step, less in the first steps; 0: the
    weights themselves."""
    best_by: ScoreName | None = None
    """Score on the validation split that decides which epoch is exported and when to stop; log_loss is that at the
    temperature fitted to the same images. None: log_loss with --balance bias, which is fitted after the training and
    changes the other scores, else balanced_accuracy."""
    best_epoch: Annotated[int, AtLeastOne] | None = None
    """Stop after this epoch and export it; --schedule is still that of all --epochs. None: with --from-folds the median
    of the folds' best epochs, else the best by --best-by."""
    patience: Annotated[int, AtLeastOne] | None = None
    """Stop after this many epochs without a better validation score. None: run all epochs."""
    confidence_level: Annotated[float, Share] = 0.9
    """How often the prediction sets shall hold the true class."""
    sets: Literal["all", "class"] = "all"
    """For what the prediction sets keep that level. all: all images together; class: the images of each class with 20
    or more validation images, the others together. Sets are then larger."""
    operate: Annotated[tuple[str, ...], UseAppendAction] = ()
    """CLASS:SCORE=VALUE: decide for this class against all others, by the threshold on its probability that reaches the
    value on the validation split. sensitivity, specificity, or precision. Each answer of the service then has the
    decision. May be given several times, once for a class."""

    costs: Path | None = None
    """A CSV file with what answers cost: a row for each true class, a column for each answer, both with their names,
    and perhaps columns of actions that are no class, such as refer. Each answer of the service then has the one of the
    least expected cost."""

    unfamiliar: Annotated[float, Share] = 0.05
    """Share of images like those of the training that may be called unfamiliar, by a limit on the distance from the
    training images that the validation split sets. Each answer of the service then has both. 0: not."""

    slices: str | None = None
    """COLUMN,...: columns of a CSV manifest by whose values the report compares scores, such as site,sex; numbers with
    more than 20 values are binned; none: no column. None: all with 2 to 20 values, and numbers."""

    views: Views | None = None
    """Let the exported graph answer by the mean over several views of each image, which takes it as many times as long.
    flips: the image and its mirror image; turns: all eight flips and quarter turns; none: the image alone. The training
    sees each image once, mirrored and turned as --symmetry says, which is then mirror or square unless given. The
    report has the scores with and without. None: flips where all of a pretrained backbone learns from images that are
    mirrored at random, else none."""

    quantize: Quantize = "none"
    """int8: also export model.int8.onnx, weights and activations in eight bits, if it gives the test images the labels
    that model.onnx gives them, as --int8-agreement demands."""

    int8_agreement: Annotated[float, UpToOne] = 0.99
    """Share of the test images whose label must be the same in eight bits."""

    promote: Promote = "better"
    """When the link `latest` in --out, which the service follows, moves to this run after its export's proof. better:
    unless it gives all test images one class, is not above chance, misses a --floor, or may lose more than --margin
    against what `latest` serves; always; never."""
    floor: Annotated[tuple[str, ...], UseAppendAction] = ()
    """With --promote better: NAME=VALUE, what the lower limit of a score's 95 % interval on the test split must be at
    least. accuracy, balanced_accuracy, macro_f1, roc_auc, or sensitivity:CLASS. May be given several times."""
    margin: Annotated[float, Share] = 0.02
    """With --promote better: the loss of balanced accuracy that the paired 95 % interval against what `latest` serves
    must exclude."""

    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Arithmetic of training; auto takes bfloat16 where the device computes in it, and float16 with a scaled loss on a
    GPU that does not. float32 is so in convolutions, too: without TF32. Scores are always float32."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to train; auto takes the GPU when there is one."""
    workers: Annotated[int, NotNegative] | None = None
    """Processes that prepare batches; 0 prepares them in the training process. None: one less than the cores, at
    most 8, where images are augmented one by one, else 0."""
    worker_timeout: Annotated[float, NotNegative] = 120.0
    """Seconds to wait for a batch before the process that prepares it counts as hanging and the run ends; 0: for ever.
    Far more than a batch takes: slow network disks and pipelines of one's own need it."""
    seed: Annotated[int, Seed] = 0
    """Fixes the split, the initial weights, the order of the images and their augmentation."""

    def __post_init__(self) -> None:
        """Raise ConfigError naming the option, the expected and the actual value."""
        check_limits(self, TrainConfig)
        check_rules(self)
        # A resumed run is given them again, and tyro appends them to its own.
        for name in ("floor", "operate"):
            object.__setattr__(self, name, tuple(dict.fromkeys(getattr(self, name))))

    @property
    def normalizes_batches(self) -> bool:
        """Whether the CNN or the MLP has batch normalisation, by option or by model."""
        return self.model == "cnn" if self.batch_norm is None else self.batch_norm

    @property
    def own_network(self) -> bool:
        """Whether the model is one of this project's own networks, not one of timm's."""
        return self.model in OWN_NETWORKS

    @property
    def pretrained(self) -> bool:
        """Whether training starts from pretrained weights, where the model is one of timm's."""
        return not self.own_network and self.weights != "none" and (self.weights is not None or self.init_from is None)

    @property
    def fine_tunes(self) -> bool:
        """Whether all of a backbone learns that comes pretrained or from --init-from."""
        return not self.own_network and not self.freeze and (self.pretrained or self.init_from is not None)

    @property
    def layer_options(self) -> list[str]:
        """Options of the own networks' layers that have another value than their default."""
        return [name for name in LAYER_OPTIONS if getattr(self, name) != getattr(TrainConfig, name)]

    @property
    def mixes(self) -> bool:
        """Whether images are mixed with one another."""
        return self.mixup > 0 or self.cutmix > 0

    def to_yaml(self) -> str:
        """The configuration as a person would read it and `config_file.from_yaml` does: all but the run's name."""
        values = {key: str(value) if isinstance(value, Path | Url) else value for key, value in asdict(self).items()}
        values = {key: list(value) if isinstance(value, tuple) else value for key, value in values.items()}
        del values["name"], values["resume"]
        return yaml.safe_dump(values, sort_keys=False)


def default_name(model: str) -> str:
    """Date, time (UTC) and model: sorts by age."""
    return f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{model.replace('/', '-')}"
