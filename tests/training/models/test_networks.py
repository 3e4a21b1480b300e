import tracemalloc
from pathlib import Path
from typing import Any

import albumentations as A
import numpy as np
import pytest
import torch

from serving.contract.card.model_card import Normalization, NormalizationMode
from serving.contract.decode import Preprocessing
from training.models import networks
from training.models.networks import build
from training.models.normalization import IMAGENET_MEAN, IMAGENET_STD, Normalize, normalization
from training.models.prediction import predict
from training.options.config import TrainConfig

MODES: tuple[NormalizationMode, ...] = ("standard", "image", "image_per_channel", "min_max", "min_max_per_channel")
RNG = np.random.default_rng(0)


def imagenet(mode: NormalizationMode, channels: int = 3) -> Normalization:
    return Normalization(mode=mode, mean=IMAGENET_MEAN[:channels], std=IMAGENET_STD[:channels], max_pixel_value=255.0)


def witness(spec: Normalization, image: np.ndarray) -> np.ndarray:
    normalize = A.Normalize(mean=spec.mean, std=spec.std, max_pixel_value=spec.max_pixel_value, normalization=spec.mode)
    return normalize(image=image)["image"].transpose(2, 0, 1)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("seed", range(10))
def test_standard_is_bit_identical_on_every_value_of_every_channel(channels: int, seed: int) -> None:
    ramp = np.repeat(np.arange(256, dtype=np.uint8).reshape(16, 16, 1), channels, axis=2)
    rng = np.random.default_rng(seed)
    spec = imagenet("standard", channels)
    if seed:  # not only ImageNet's numbers
        mean, std = rng.uniform(0, 1, channels), rng.uniform(0.05, 1, channels)
        spec = Normalization(
            mode="standard", mean=tuple(mean), std=tuple(std), max_pixel_value=float(rng.choice([1, 255, 256]))
        )
    ours = Normalize(spec)(torch.from_numpy(ramp)[None])[0].numpy()
    assert ours.dtype == np.float32
    assert int((ours == witness(spec, ramp)).sum()) == 256 * channels


IMAGES = {
    "noise": RNG.integers(0, 256, (64, 64, 3), dtype=np.uint8),
    "faint noise": RNG.integers(100, 102, (64, 64, 3), dtype=np.uint8),
    "black": np.zeros((64, 64, 3), np.uint8),
    "white": np.full((224, 224, 3), 255, np.uint8),
    "one odd pixel": np.pad(np.array([[[255, 0, 7]]], np.uint8), ((3, 60), (9, 54), (0, 0)), constant_values=128),
    "gray": RNG.integers(0, 256, (28, 28, 1), dtype=np.uint8),
}


@pytest.mark.parametrize("image", IMAGES.values(), ids=IMAGES)
@pytest.mark.parametrize("mode", MODES)
def test_every_mode_agrees_with_albumentations(mode: NormalizationMode, image: np.ndarray) -> None:
    spec = imagenet(mode, image.shape[2])
    ours = Normalize(spec)(torch.from_numpy(image)[None])[0].numpy()
    assert np.abs(ours - witness(spec, image)).max() <= 1e-5


def test_an_image_is_normalised_without_regard_to_its_batch() -> None:
    images = torch.from_numpy(np.stack([IMAGES["noise"], IMAGES["black"], IMAGES["faint noise"]]))
    for mode in MODES:
        layer = Normalize(imagenet(mode))
        assert torch.equal(layer(images), torch.cat([layer(image[None]) for image in images]))


def parameters(config: TrainConfig, side: int, classes: int) -> int:
    preprocessing = Preprocessing(height=side, width=side, channels=config.channels, interpolation="area")
    spec = imagenet("standard", config.channels)
    return sum(parameter.numel() for parameter in build(config, preprocessing, spec, classes).parameters())


def test_the_mlp_is_the_one_of_the_assignment() -> None:
    assert parameters(TrainConfig(model="mlp"), 64, 9) == 6_358_793
    gray = parameters(TrainConfig(model="mlp", channels=1), 64, 9)
    assert gray == 6_358_793 - 512 * 64 * 64 * 2
    network: Any = build(
        TrainConfig(model="mlp"),
        Preprocessing(height=64, width=64, channels=3, interpolation="area"),
        imagenet("standard"),
        9,
    )
    assert [type(layer).__name__ for layer in network[1]] == ["Flatten", "Linear", "ReLU", "Linear", "ReLU"]
    assert [type(layer).__name__ for layer in network[2]] == ["Linear"]


@pytest.mark.parametrize(
    ("side", "largest"),
    [(8, 8), (16, 16), (28, 28), (64, 32), (128, 32), (224, 28), *((side, None) for side in range(9, 70))],
)
def test_the_cnn_fits_any_size(side: int, largest: int | None) -> None:
    for channels in (1, 3):
        config = TrainConfig(model="cnn", channels=channels)
        preprocessing = Preprocessing(height=side, width=side, channels=channels, interpolation="area")
        model: Any = build(config, preprocessing, imagenet("standard", channels), 7)
        shapes: list[int] = []
        model[1][3].register_forward_hook(lambda _, maps, __, shapes=shapes: shapes.append(maps[0].shape[-1]))
        assert model(torch.zeros((2, side, side, channels), dtype=torch.uint8)).shape == (2, 7)
        if largest is not None and (largest == side or side <= 64):
            assert shapes == [largest]


def test_the_numbers_of_the_first_layer_come_from_where_they_should() -> None:
    images = RNG.integers(0, 256, (900, 9, 9, 3), dtype=np.uint8)
    chosen = RNG.permutation(900)[:600]
    assert normalization(TrainConfig(), images, chosen).mean == IMAGENET_MEAN
    assert normalization(TrainConfig(channels=1), images[..., :1], chosen).mean == (0.449,)
    given = normalization(TrainConfig(mean=(0.1, 0.2, 0.3), std=(1.0, 1.0, 1.0)), images, chosen)
    assert given.mean == (0.1, 0.2, 0.3)
    measured = normalization(TrainConfig(mean_std="dataset"), images, chosen)
    images = images[chosen]
    assert measured.mean == pytest.approx(images.mean((0, 1, 2)) / 255, rel=1e-12)
    assert measured.std == pytest.approx(images.std((0, 1, 2)) / 255, rel=1e-12)


def test_predict_is_softmax_in_float32_and_leaves_the_mode_alone() -> None:
    images = np.random.default_rng(0).integers(0, 256, (300, 8, 8, 3), dtype=np.uint8)
    layers = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.LazyLinear(3), torch.nn.Dropout(0.5))
    model = torch.nn.Sequential(_ToFloat(), *layers).train()
    model(torch.from_numpy(images[:1]))
    first, second = predict(model, images), predict(model, images)
    assert first.dtype == np.float32
    assert np.array_equal(first, second)
    assert np.abs(first.sum(1) - 1).max() < 1e-6
    assert model.training


def test_images_are_copied_a_batch_at_a_time(tmp_path: Path) -> None:
    np.save(tmp_path / "images.npy", RNG.integers(0, 256, (20_000, 16, 16, 3), dtype=np.uint8))
    images = np.load(tmp_path / "images.npy", mmap_mode="r")
    chosen = RNG.permutation(20_000)[:15_000]
    model = torch.nn.Sequential(torch.nn.Flatten(), _ToFloat(), torch.nn.Linear(768, 2))
    tracemalloc.start()
    answers = predict(model, images, chosen)
    measured = normalization(TrainConfig(mean_std="dataset"), images, chosen)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < images.nbytes / 4
    assert np.array_equal(answers[:256], predict(model, images[chosen[:256]]))
    assert measured == normalization(TrainConfig(mean_std="dataset"), images[chosen], np.arange(15_000))


class _ToFloat(torch.nn.Module):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.float() / 255


def network(**options: Any) -> Any:
    torch.manual_seed(0)
    config = TrainConfig(**({"model": "cnn"} | options))
    size = Preprocessing(height=16, width=16, channels=3, interpolation="area")
    return build(config, size, imagenet("standard"), 5)


def kinds(model: torch.nn.Module) -> list[str]:
    return [type(layer).__name__ for layer in model.modules() if not list(layer.children())]


@pytest.mark.parametrize(
    ("activation", "name"),
    [("relu", "ReLU"), ("leaky_relu", "LeakyReLU"), ("gelu", "GELU"), ("tanh", "Tanh"), ("sigmoid", "Sigmoid")],
)
def test_every_layer_but_the_last_is_followed_by_the_activation_asked_for(activation: str, name: str) -> None:
    mlp, cnn = network(model="mlp", activation=activation), network(activation=activation)
    assert kinds(mlp) == ["Normalize", "Flatten", "Linear", name, "Linear", name, "Linear"]
    assert kinds(cnn).count(name) == 1 + 2 * 3
    others = {"ReLU", "LeakyReLU", "GELU", "Tanh", "Sigmoid"} - {name}
    assert not others & set(kinds(cnn))
    images = torch.randint(0, 256, (4, 16, 16, 3), dtype=torch.uint8)
    reference = network(model="mlp")
    if name != "ReLU":
        assert not torch.allclose(mlp(images), reference(images))


def test_batch_normalisation_precedes_the_activation_and_replaces_biases() -> None:
    with_it = kinds(network(model="mlp", batch_norm=True, dropout=0.1))
    assert with_it == ["Normalize", "Flatten", *["Linear", "BatchNorm1d", "ReLU", "Dropout"] * 2, "Linear"]
    for model, batch_norm in ((network(), True), (network(batch_norm=False), False), (network(model="mlp"), False)):
        assert any("BatchNorm" in kind for kind in kinds(model)) == batch_norm
        for layer in list(model[1].modules()):
            if isinstance(layer, torch.nn.Conv2d):
                assert (layer.bias is None) == batch_norm


@pytest.mark.parametrize("batch_norm", [True, False])
def test_a_residual_block_adds_nothing_at_first(batch_norm: bool) -> None:
    maps = torch.rand((2, 32, 16, 16))
    block = network(batch_norm=batch_norm)[1][2 + batch_norm].eval()
    assert type(block).__name__ == "ResidualBlock"
    assert not block.body(maps).any()
    assert torch.equal(block(maps), maps)


def test_the_cnn_comes_in_three_sizes() -> None:
    assert [parameters(TrainConfig(model="cnn", width=width), 64, 10) for width in (16, 32, 64)] == [
        78_042,
        308_650,
        1_227_594,
    ]


def test_features_and_head_are_the_whole_network() -> None:
    model = network(model="cnn", dropout=0.5).eval()
    body, head = networks.features_and_head(model)
    images = torch.randint(0, 256, (4, 16, 16, 3), dtype=torch.uint8)
    assert torch.equal(head(body(images)), model(images))
    assert body.state_dict().keys() | head.state_dict().keys() == model.state_dict().keys()
    assert body.state_dict().keys() & head.state_dict().keys() == set()
