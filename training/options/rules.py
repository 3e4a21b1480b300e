"""The rules of options together, which the limits of one cannot express."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from serving.contract.decode import NEUTRAL
from training.options.choices import PIPELINE_ENDINGS, SYMMETRIES, WEIGHTS_ENDINGS
from training.options.limits import require, share_of

if TYPE_CHECKING:  # the options check themselves by these rules
    from training.options.config import TrainConfig
    from training.options.settled import SettledConfig

Rule = tuple[bool, str, str, object]
"""Whether it holds, the options, what is expected of them, and their value."""


def check_rules(config: "TrainConfig") -> None:
    """Raise ConfigError naming the option, the expected and the actual value."""
    for rules in (_data_rules, _augmentation_rules, _model_rules, _training_rules):
        for holds, names, expected, value in rules(config):
            require(holds, names, expected, value)


def _data_rules(config: "TrainConfig") -> Iterator[Rule]:
    """The rules of the splits, --fold and --from-folds."""
    yield held_out(config.val_fraction, config.test_fraction)
    if config.fold is not None and "=" in config.fold:
        column, _, value = config.fold.partition("=")
        yield bool(column.strip() and value.strip()), "fold", "COLUMN=VALUE, such as site=Graz", config.fold
    elif config.fold is not None:
        yield share_of("fold", config.fold)[1] > 1, "fold", "2 parts or more", config.fold
    if config.from_folds is not None:
        yield config.fold is None, "fold", "none beside --from-folds, which holds no image out", config.fold
        yield (
            config.images_per_class is None,
            "images_per_class",
            "none beside --from-folds, which trains on all images",
            config.images_per_class,
        )
        yield config.patience is None, "patience", "none beside --from-folds, which holds no image out", config.patience
        yield config.quantize == "none", "quantize", "none beside --from-folds: no image is left to score it", "int8"


def in_vain(config: "SettledConfig") -> Iterator[str]:
    """A sentence for each option that was given and changes nothing. It breaks no rule, and is not refused."""
    frozen = "beside --freeze, which trains the last layer on features that are computed once"
    measured = f"beside --normalization {config.normalization}, which measures each image"
    for idle, name, default, why in (
        (config.freeze, "freeze_epochs", 0, frozen),
        (config.freeze, "body_lr", 1.0, frozen),
        (config.freeze, "drop_path", 0.0, frozen),
        (config.best_epoch is not None, "patience", None, "beside --best-epoch, which says when to stop"),
        (config.normalization != "standard", "mean_std", None, measured),
        (config.fit != "pad", "fill", NEUTRAL, f"beside --fit {config.fit}, which leaves no border to fill"),
    ):
        if idle and (value := getattr(config, name)) != default:
            yield f"--{name.replace('_', '-')} {value} changes nothing {why}"
    if config.warmup_epochs > max(config.epochs / 2, type(config).warmup_epochs):
        yield f"--warmup-epochs {config.warmup_epochs:g}: the warm-up ends after half of the {config.epochs} epochs"
    if config.freeze_epochs and not config.pretrained and config.init_from is None:
        yield f"--freeze-epochs {config.freeze_epochs}: the layers that stand still have random weights"


def held_out(val_fraction: float, test_fraction: float) -> Rule:
    """The rule of the shares that are held out: some images remain for training."""
    both = val_fraction + test_fraction
    return both < 1, "val_fraction and test_fraction", "together below 1", both


def _augmentation_rules(config: "TrainConfig") -> Iterator[Rule]:
    """The rules of normalisation, augmentation and views."""
    mean, std, augment = config.mean, config.std, config.augment
    yield len(mean) == len(std), "mean and std", "of the same length", (mean, std)
    yield len(mean) in (0, config.channels), "mean and std", f"of {config.channels} number(s)", mean
    yield _file_or_word("augment", augment, "none, light, strong", PIPELINE_ENDINGS)
    yield (
        config.symmetry in (None, "none") or not isinstance(augment, Path),
        "symmetry",
        "none beside a file of --augment, which contains all random changes",
        config.symmetry,
    )
    shown = SYMMETRIES[config.views or "none"]
    yield (
        config.symmetry in (None, *shown) or config.freeze or isinstance(augment, Path),
        "symmetry",
        f"{' or '.join(shown)} beside --views {config.views}, which keep the label of an image only then",
        config.symmetry,
    )
    yield (
        config.augment_on != "device" or not isinstance(augment, Path),
        "augment_on",
        "workers beside a file of --augment, which Albumentations applies image by image",
        config.augment_on,
    )


def _model_rules(config: "TrainConfig") -> Iterator[Rule]:
    """The rules of --model, --weights and --freeze."""
    weights, model = config.weights, config.model
    yield _file_or_word("weights", weights, "default, none", WEIGHTS_ENDINGS)
    layers = config.layer_options
    layers_fit = config.own_network or model == "auto" or not layers
    yield layers_fit, "model", f"mlp or cnn beside --{'/'.join(layers).replace('_', '-')}", model
    yield bool(config.hidden), "hidden", "the width of one layer or more", "none"
    for option, owner, other in (("hidden", "mlp", "cnn"), ("width", "cnn", "mlp")):
        yield option not in layers or model != other, "model", f"{owner} beside --{option}", model
    yield not {"hidden", "width"} <= {*layers}, "width", "none beside --hidden, of another network", config.width
    yield not config.own_network or weights in (None, "none"), "weights", f"none beside --model {model}", weights
    yield not config.own_network or not config.drop_path, "drop_path", f"0 beside --model {model}", config.drop_path
    yield not isinstance(weights, Path) or model != "auto", "model", "the architecture of the file of --weights", model
    both = weights not in (None, "none") and config.init_from is not None
    yield not both, "weights", "none beside --init-from, which brings weights", weights
    frozen, epochs = config.freeze_epochs, config.epochs
    yield epochs is None or frozen < epochs, "freeze_epochs", f"fewer than the {epochs} epochs", frozen
    if config.freeze:
        yield (
            config.init_from is not None or config.pretrained,
            "freeze",
            "--init-from or the pretrained weights of a timm architecture beside it",
            f"--model {model}",
        )
        # What is computed once can be neither augmented nor mixed.
        drawn = {name: getattr(config, name) for name in ("augment", "symmetry", "mixup", "cutmix")}
        given = [f"--{name} {value}" for name, value in drawn.items() if value not in (None, "none", 0)]
        yield not given, "freeze", "images that stay as they are, so that features are computed once", ", ".join(given)


def _training_rules(config: "TrainConfig") -> Iterator[Rule]:
    """The rules of --batch-size, --int8-agreement, --promote and --name."""
    in_vain = config.int8_agreement != type(config).int8_agreement and config.quantize == "none"
    yield not in_vain, "int8_agreement", "none without --quantize int8", config.int8_agreement
    single = config.model == "mlp" and config.batch_norm and config.batch_size == 1
    yield not single, "batch_size", "2 or more with --batch-norm", 1
    promote, name = config.promote, config.name
    yield promote == "better" or not config.floor, "floor", f"none beside --promote {promote}", config.floor
    yield name is None or Path(name).name == name, "name", "a folder's name, not a path", name


def _file_or_word(option: str, value: object, words: str, endings: tuple[str, ...]) -> Rule:
    fits = not isinstance(value, Path) or value.suffix in endings
    return fits, option, f"{words} or a file that ends in {', '.join(endings)}", value
