import copy
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch

from serving.contract.card.model_card import INPUT_NAME, Normalization
from serving.contract.decode import Channels, Preprocessing
from tests.support.backbones import FAMILIES
from training.errors import ConfigError
from training.export import onnx
from training.models import backbones, networks
from training.models.normalization import IMAGENET_MEAN, IMAGENET_STD
from training.models.prediction import predict
from training.options.config import TrainConfig


def build(name: str, side: int = 64, channels: Channels = 3, classes: int = 5, **options: Any) -> torch.nn.Sequential:
    torch.manual_seed(0)
    size = Preprocessing(height=side, width=side, channels=channels, interpolation="area")
    spec = Normalization(
        mode="standard", mean=IMAGENET_MEAN[:channels], std=IMAGENET_STD[:channels], max_pixel_value=255.0
    )
    return networks.build(TrainConfig(model=name, weights="none", **options), size, spec, classes)


def images(count: int, side: int = 64, channels: int = 3) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, side, side, channels), dtype=np.uint8)


@pytest.mark.parametrize("channels", [3, 1])
@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_is_exported_as_it_computes(name: str, channels: Channels) -> None:
    model = build(name, channels=channels, classes=2 if channels == 1 else 1000, drop_path=0.1, dropout=0.2)
    shown = images(3, channels=channels)
    with torch.no_grad():
        model.train()(torch.from_numpy(shown))  # statistics that are not those of the start
    before = predict(model, shown)
    session = onnxruntime.InferenceSession(onnx.graph(model, shown.shape[1:]), providers=["CPUExecutionProvider"])
    [served] = session.run(None, {INPUT_NAME: shown})
    assert np.abs(served - before).max() <= 1e-5
    assert np.array_equal(predict(model, shown), before), "the export changes no model"


def test_gray_is_the_sum_of_the_colours_first_layers() -> None:
    library = backbones.timm()
    colour = library.create_model("resnet18", pretrained=False)
    state = copy.deepcopy(colour.state_dict())
    gray = library.create_model("resnet18", pretrained=True, in_chans=1, pretrained_cfg_overlay={"state_dict": state})
    assert torch.allclose(gray.conv1.weight, state["conv1.weight"].sum(1, keepdim=True))


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (
            {"model": "resnet81"},
            "--model: expected auto, mlp, cnn or an architecture of timm, got resnet81; near it are .*resnet",
        ),
        ({"model": "resnet18.of_nobody"}, "got resnet18.of_nobody; near it are resnet18, resnet18d, .*"),
        (
            {"model": "efficientformer_l1", "image_size": 64},
            "--image-size: efficientformer_l1 takes images of 224 px alone, got 64",
        ),
        ({"model": "vgg11", "drop_path": 0.1}, "--model vgg11: cannot be made with .*drop_path"),
    ],
)
def test_what_timm_cannot_make_is_refused_with_what_would_do(options: dict[str, Any], expected: str) -> None:
    config = TrainConfig(weights="none", **options)
    with pytest.raises(ConfigError, match=expected):
        backbones.create(backbones.check(config), config.image_size or 64, 3)


def test_a_fixed_size_is_the_default() -> None:
    assert backbones.check(TrainConfig(model="vit_tiny_patch16_224")).image_size == 224
    assert backbones.check(TrainConfig(model="vit_tiny_patch16_224", image_size=64)).image_size == 64
    assert backbones.check(TrainConfig(model="resnet18")).image_size is None
    for own in ("auto", "cnn", "mlp"):
        assert backbones.check(TrainConfig(model=own)) == TrainConfig(model=own)


def test_stochastic_depth_and_dropout_are_random_in_training_alone() -> None:
    model = build("convnext_atto", drop_path=0.5)
    shown = torch.from_numpy(images(2))
    assert not torch.equal(model.train()(shown), model(shown))
    assert torch.equal(model.eval()(shown), model(shown))


def test_a_size_that_the_architecture_cannot_take_is_refused_before_the_data_is_read() -> None:
    with pytest.raises(ConfigError, match="--model densenet121: takes no images of 16 px"):
        backbones.check(TrainConfig(model="densenet121", image_size=16))
    assert backbones.check(TrainConfig(model="resnet18", image_size=64)).image_size == 64
