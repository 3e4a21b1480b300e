"""What an option may be: its words, and where images are."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import PlainValidator
from tyro.constructors import PrimitiveConstructorSpec

from serving.contract.card.model_card import Views
from serving.contract.objects import Url, location

Activation = Literal["relu", "leaky_relu", "gelu", "tanh", "sigmoid"]
Init = Literal["default", "constant", "uniform", "normal", "xavier_uniform", "xavier_normal", "he_uniform", "he_normal"]
OptimizerName = Literal["adamw", "adam", "sgd"]
ScheduleName = Literal["cosine", "constant", "step"]
Balance = Literal["none", "loss", "logits", "sampler", "bias"]
Policy = Literal["none", "light", "strong"]
Symmetry = Literal["none", "mirror", "square"]
Leaks = Literal["drop", "error", "warn"]
DepthRule = Literal["auto", "range", "percentile"]
Quantize = Literal["none", "int8"]
Promote = Literal["better", "always", "never"]
ScoreName = Literal["balanced_accuracy", "accuracy", "macro_f1", "roc_auc", "log_loss"]

OWN_NETWORKS = ("mlp", "cnn")
LAYER_OPTIONS = ("hidden", "width", "activation", "batch_norm", "init", "init_scale", "zero_biases")
"""Options of the layers of the own networks; timm's architectures bring theirs."""
SYMMETRIES: dict[Views, tuple[Symmetry, ...]] = {
    "none": ("none", "mirror", "square"),
    "flips": ("mirror", "square"),
    "turns": ("square",),
}
"""Those by which the views of an image have its label; the first is the default beside them."""
WEIGHTS_ENDINGS = (".safetensors", ".pth", ".pt", ".bin")
PIPELINE_ENDINGS = (".yaml", ".yml", ".json")


def _url(value: object) -> Url:
    url = location(value) if isinstance(value, str) else value
    if not isinstance(url, Url):
        raise ValueError("expected a URL")
    return url


Data = (
    Annotated[
        Url,
        PlainValidator(_url),
        PrimitiveConstructorSpec(
            nargs=1,
            metavar="URL",
            instance_from_str=lambda texts: _url(texts[0]),
            is_instance=lambda value: isinstance(value, Url),
            str_from_instance=lambda value: [str(value)],
        ),
    ]
    | Path
)
"""Where images are, on the command line and in a YAML file."""
