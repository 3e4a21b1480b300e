from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from serving.contract.card.model_card import Normalization
from serving.contract.decode import Preprocessing
from serving.contract.model import open_model
from training import train
from training.engine import checkpoint
from training.engine.transfer import inherit, transfer
from training.errors import CheckpointRefused
from training.models import networks
from training.options.config import TrainConfig

CPU = torch.device("cpu")
OPTIONS: dict[str, Any] = {"model": "mlp", "hidden": (32,), "image_size": 24}
CLASSES = ("Red rash", "blue", "green leaf")


def fresh(classes: tuple[str, ...] = CLASSES, std: float = 0.2, **options: Any) -> tuple[Any, dict[str, Any]]:
    given = OPTIONS | options
    config = TrainConfig(
        **{name: value for name, value in given.items() if name != "hidden" or given["model"] == "mlp"}
    )
    side, channels = config.image_size, config.channels
    assert side is not None
    preprocessing = Preprocessing(height=side, width=side, channels=channels, interpolation=config.interpolation)
    normalization = Normalization(
        mode=config.normalization, mean=(0.5,) * channels, std=(std,) * channels, max_pixel_value=255.0
    )
    model = networks.build(config, preprocessing, normalization, len(classes))
    return model, networks.settings(config, preprocessing, normalization, classes)


def best(run: Path) -> dict[str, torch.Tensor]:
    return checkpoint.load(run / "checkpoints" / "best.pt", CPU)["model"]


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_the_same_classes_take_all_weights_and_keep_their_own_normalisation(run: Path, dropout: float) -> None:
    model, settings = fresh(dropout=dropout)
    said = transfer(model, settings, run)
    assert said.endswith("best.pt: 4 of 4 tensors taken")
    theirs = [tensor for name, tensor in best(run).items() if not name.startswith("0.")]
    assert all(map(torch.equal, model[1:].state_dict().values(), theirs))
    assert model[0].scale[0].item() == pytest.approx(1 / (0.2 * 255))


def test_other_classes_get_a_new_last_layer(run: Path) -> None:
    model, settings = fresh(("a", "b", "c", "d", "e"))
    head = model[2][-1].weight.detach().clone()
    said = transfer(model, settings, run / "checkpoints" / "last.pt")
    assert said.endswith("2 of 4 tensors taken, the last layer is new (3 classes there, 5 here)")
    assert torch.equal(model[1][1].weight, checkpoint.load(run / "checkpoints" / "last.pt", CPU)["model"]["1.1.weight"])
    assert torch.equal(model[2][-1].weight, head)
    renamed, settings = fresh(("Red rash", "blue", "yellow"))
    assert "the last layer is new" in transfer(renamed, settings, run), "as many, but others"


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"hidden": (16,)}, r"hidden is \[32\] there and \[16\] here"),
        ({"image_size": 32}, "image height is 24 there and 32 here, image width is 24 there and 32 here"),
        ({"channels": 1}, "image channels is 3 there and 1 here"),
        ({"activation": "tanh"}, "activation is relu there and tanh here"),
        ({"batch_norm": True}, "batch_norm is False there and True here"),
        ({"model": "cnn"}, "model is mlp there and cnn here"),
        ({"normalization": "image"}, "normalization is standard there and image here"),
    ],
)
def test_what_does_not_fit_is_refused_with_both_values(run: Path, options: dict[str, Any], expected: str) -> None:
    model, settings = fresh(**options)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(CheckpointRefused, match=expected):
        transfer(model, settings, run)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"width": 16}, "width is 8 there and 16 here$"),
        ({"batch_norm": False}, "batch_norm is True there and False here$"),
        ({"image_size": 64}, "image height is 24 there and 64 here"),
        ({"interpolation": "linear"}, "image interpolation is area there and linear here$"),
    ],
)
def test_a_cnn_is_refused_likewise(tmp_path: Path, options: dict[str, Any], expected: str) -> None:
    origin, theirs = fresh(model="cnn", width=8)
    checkpoint.save({"model": origin.state_dict(), "settings": theirs}, tmp_path / "cnn.pt")
    changed: dict[str, Any] = {"model": "cnn", "width": 8} | options
    model, settings = fresh(**changed)
    with pytest.raises(CheckpointRefused, match=expected):
        transfer(model, settings, tmp_path / "cnn.pt")
    same, settings = fresh(model="cnn", width=8)
    transfer(same, settings, tmp_path / "cnn.pt")
    assert all(map(torch.equal, same.state_dict().values(), origin.state_dict().values()))


def test_a_timm_architecture_may_get_images_of_another_size(tmp_path: Path) -> None:
    origin, theirs = fresh(model="resnet18", weights="none", image_size=32)
    checkpoint.save({"model": origin.state_dict(), "settings": theirs}, tmp_path / "resnet.pt")
    larger, settings = fresh(model="resnet18", weights="none", image_size=48)
    transfer(larger, settings, tmp_path / "resnet.pt")
    assert all(map(torch.equal, larger[1:].state_dict().values(), origin[1:].state_dict().values()))
    positions, theirs = fresh(model="vit_tiny_patch16_224", weights="none", image_size=64)
    checkpoint.save({"model": positions.state_dict(), "settings": theirs}, tmp_path / "vit.pt")
    model, settings = fresh(model="vit_tiny_patch16_224", weights="none", image_size=96)
    with pytest.raises(CheckpointRefused, match=r"this size: pos_embed is \(1, 17, 192\) there and \(1, 37, 192"):
        transfer(model, settings, tmp_path / "vit.pt")
    other, settings = fresh(model="resnet18", weights="none", image_size=48, interpolation="linear")
    with pytest.raises(CheckpointRefused, match=r"image interpolation is area there and linear here$"):
        transfer(other, settings, tmp_path / "resnet.pt")


def test_a_file_without_settings_is_refused(tmp_path: Path) -> None:
    model, settings = fresh()
    checkpoint.save(model.state_dict(), tmp_path / "weights.pt")
    with pytest.raises(CheckpointRefused, match=r"weights\.pt: expected model and settings, got 0\.mean"):
        transfer(model, settings, tmp_path / "weights.pt")
    with pytest.raises(CheckpointRefused, match=r"best\.pt: there is no such checkpoint"):
        transfer(model, settings, tmp_path)


@pytest.mark.long
def test_fine_tuning_starts_at_the_other_run_s_end_and_freezing_moves_the_head_alone(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    common: dict[str, Any] = {"data": photos, "out": tmp_path, "width": 8, "image_size": 16, "batch_size": 16}
    origin = train.train(TrainConfig(**common, name="origin", epochs=2))
    for freeze in (False, True):
        config = TrainConfig(
            **common, name=f"tuned-{freeze}", epochs=1, init_from=origin, freeze=freeze, dropout=0.2, init="he_normal"
        )
        tuned, before = best(train.train(config)), best(origin)
        assert "56 of 56 tensors taken" in capsys.readouterr().out
        changed = {name for name, tensor in tuned.items() if not torch.equal(tensor, before[name])}
        head = {name for name in tuned if name.startswith("2.")}
        assert len(head) == 2
        assert changed == head if freeze else changed > head, "neither weights nor statistics of the others"


def test_a_checkpoint_that_does_not_fit_leaves_no_run_behind(run: Path, photos: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointRefused, match="24 there and 16 here"):
        train.train(TrainConfig(**(OPTIONS | {"image_size": 16}), data=photos, out=tmp_path, init_from=run))
    assert [path.name for path in tmp_path.iterdir()] == [".cache"]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, (0.1, 200.0)),
        ({"max_pixel_value": 100.0}, (0.1, 100.0)),
        ({"mean_std": "imagenet"}, (None, 255.0)),
        ({"mean": (0.3,) * 3, "std": (0.2,) * 3}, (0.3, 255.0)),
        ({"channels": 1}, (None, 255.0)),
    ],
)
def test_mean_and_deviation_come_with_the_value_of_which_they_are_shares(
    tmp_path: Path, given: dict[str, Any], expected: tuple[float | None, float]
) -> None:
    origin, settings = fresh()
    settings["normalization"] |= {"mean": (0.1,) * 3, "max_pixel_value": 200.0}
    checkpoint.save({"model": origin.state_dict(), "settings": settings}, tmp_path / "x.pt")
    found = inherit(TrainConfig(init_from=tmp_path / "x.pt", **given))
    assert (next(iter(found.mean), None), found.max_pixel_value) == expected


@pytest.mark.long
def test_what_is_left_open_is_that_of_the_origin(run: Path, photos: Path, tmp_path: Path) -> None:
    changed = TrainConfig(data=photos, out=tmp_path, name="own", init_from=run, mean_std="dataset", image_size=32)
    assert inherit(changed) == replace(changed, model="mlp")
    origin = train.train(
        TrainConfig(
            data=photos, out=tmp_path, name="origin", model="cnn", width=8, image_size=16, epochs=1, mean_std="dataset"
        )
    )
    left_open = TrainConfig(data=photos, out=tmp_path, name="tuned", init_from=origin, width=8, epochs=1)
    tuned = open_model(train.train(left_open) / "model.onnx").card
    card = open_model(origin / "model.onnx").card
    assert (tuned.normalization, tuned.preprocessing) == (card.normalization, card.preprocessing)
