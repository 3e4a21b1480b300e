import threading
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from tests.support.pickles import Canary
from tests.support.trainer import command
from tests.training.models.test_backbones import build
from training.errors import CheckpointRefused, WeightsMissing
from training.models import backbones, weights
from training.options.config import TrainConfig
from training.storage import digest


def resnet(classes: int = 7) -> Any:
    torch.manual_seed(1)
    return backbones.timm().create_model("resnet18", num_classes=classes)


def of(path: Path, model: str = "resnet18", **options: Any) -> TrainConfig:
    return TrainConfig(model=model, weights=path, image_size=64, **options)


@pytest.fixture(params=[".safetensors", ".pth", ".bin"])
def file(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """Weights of a ResNet-18 of seven classes, as three programs would store them."""
    path, state = tmp_path / f"w{request.param}", resnet().state_dict()
    if request.param == ".safetensors":
        save_file(state, path)
    elif request.param == ".pth":
        torch.save({"epoch": 3, "state_dict": {f"module.{name}": tensor for name, tensor in state.items()}}, path)
    else:
        torch.save(state, path)
    return path


@pytest.mark.parametrize("classes", [7, 5])
def test_a_file_fills_the_body_and_the_head_where_the_classes_are_as_many(file: Path, classes: int) -> None:
    model = build("resnet18", classes=classes)
    found = weights.find(of(file))
    sentence = weights.load(model, found, of(file))
    theirs = resnet().state_dict()
    ours: Any = model[1].state_dict()
    assert ours.keys() == theirs.keys() - {"fc.weight", "fc.bias"}
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert torch.equal(model[2][-1].weight, theirs["fc.weight"]) if classes == 7 else True  # type: ignore[index]
    assert ("the last layer is kept" in sentence) == (classes == 7)
    assert found.record.digest == digest(file)
    assert (found.record.source, found.record.licence) == (str(file), None)


def test_gray_takes_weights_of_colour(tmp_path: Path) -> None:
    torch.save(resnet().state_dict(), tmp_path / "w.pth")
    model = build("resnet18", channels=1)
    config = of(tmp_path / "w.pth", channels=1)
    weights.load(model, found := weights.find(config), config)
    expected = found.tensors["conv1.weight"].sum(1, keepdim=True)
    assert torch.allclose(model[1].conv1.weight, expected)  # type: ignore[union-attr,arg-type]
    assert weights.normalized(config, found).mean == (pytest.approx(sum(found.mean) / 3),)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("other", r"does not fit resnet18: .*(Missing|Unexpected) key"),
        ("shapes", r"does not fit resnet18: .*size mismatch for conv1\.weight.*\[64, 3, 9, 9\].*\[64, 3, 7, 7\]"),
        ("cut", "cut off, or not a file of tensors alone"),
        ("canary", "cut off, or not a file of tensors alone"),
        ("text", "cut off, or not a file of tensors alone"),
        ("list", "expected tensors by name, got none"),
        ("empty", "expected tensors by name, got none"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(tmp_path: Path, content: str, expected: str) -> None:
    path, state = tmp_path / "w.pth", resnet().state_dict()
    if content == "other":
        state = backbones.timm().create_model("mobilenetv3_small_100").state_dict()
    if content == "shapes":
        state["conv1.weight"] = torch.zeros(64, 3, 9, 9)
    stored = {"canary": Canary(tmp_path / "executed"), "list": [torch.zeros(1)], "empty": {}}.get(content, state)
    torch.save(stored, path)
    if content == "cut":
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    if content == "text":
        path.write_text("not weights")
    model = build("resnet18")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(CheckpointRefused, match=f"(?s){path}.*{expected}"):
        weights.load(model, weights.find(of(path)), of(path))
    assert not (tmp_path / "executed").exists()
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


@pytest.mark.slow
def test_any_damage_is_refused(tmp_path: Path) -> None:
    """In the older format of torch.save, whose reader raises KeyError, IndexError, struct.error and others."""
    path, rng = tmp_path / "w.bin", np.random.default_rng(0)
    torch.save(
        {f"{number}.weight": torch.zeros(3, 4) for number in range(4)}, path, _use_new_zipfile_serialization=False
    )
    whole, refused = path.read_bytes(), 0
    for _ in range(300):
        damaged = bytearray(whole)
        for place in rng.integers(len(whole), size=3):
            damaged[place] = rng.integers(256)
        path.write_bytes(damaged)
        try:
            weights.find(of(path))
        except CheckpointRefused:
            refused += 1
    assert refused > 100
    torch.save({1: torch.zeros(3), "fc.weight": torch.zeros(())}, path)
    with pytest.raises(CheckpointRefused, match="does not fit resnet18"):
        weights.load(build("resnet18"), weights.find(of(path)), of(path))


def test_a_position_embedding_of_another_shape_is_refused(tmp_path: Path) -> None:
    state = backbones.timm().create_model("vit_tiny_patch16_224", num_classes=5).state_dict()
    torch.save(state | {"pos_embed": torch.zeros(3)}, path := tmp_path / "w.pth")
    with pytest.raises(CheckpointRefused, match="does not fit vit_tiny_patch16_224"):
        weights.load(build("vit_tiny_patch16_224"), weights.find(of(path)), of(path, "vit_tiny_patch16_224"))


@pytest.mark.parametrize("name", ["resnetv2_18", "deit_tiny_distilled_patch16_224", "caformer_s18"])
def test_a_head_that_is_no_linear_layer_is_new(tmp_path: Path, name: str) -> None:
    """A convolution, two layers, an MLP: the body is taken, and the last layer starts at random."""
    theirs = backbones.timm().create_model(name, num_classes=5)
    torch.save(theirs.state_dict(), path := tmp_path / "w.pth")
    config = of(path, name)
    side = backbones.check(TrainConfig(model=name)).image_size or 64
    model = build(name, side=side)
    before = {key: tensor.clone() for key, tensor in model[2].state_dict().items()}
    assert "kept" not in weights.load(model, weights.find(config), replace(config, image_size=side))
    assert all(torch.equal(tensor, before[key]) for key, tensor in model[2].state_dict().items())
    theirs.reset_classifier(0)
    assert all(torch.equal(tensor, theirs.state_dict()[key]) for key, tensor in model[1].state_dict().items())


def test_a_safetensors_file_that_is_cut_off_is_refused(tmp_path: Path) -> None:
    save_file(resnet().state_dict(), path := tmp_path / "w.safetensors")
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(CheckpointRefused, match="cut off"):
        weights.find(of(path))
    with pytest.raises(WeightsMissing, match="there is no such file"):
        weights.find(of(tmp_path / "none.pth"))


def test_the_package_brings_what_its_photographs_were_trained_with() -> None:
    """The names of two classes of ImageNet-1k: 0 is a tench; a picture of one colour is neither certain nor a fish."""
    config = TrainConfig(model="tf_efficientnet_lite0")
    found = weights.find(config)
    assert found.record.name == "tf_efficientnet_lite0.in1k"
    assert found.record.licence == "Apache-2.0"
    assert found.mean == (127 / 255,) * 3
    model = build("tf_efficientnet_lite0", classes=1000)
    assert "the last layer is kept (1000 classes)" in weights.load(model, found, config)


def test_a_licence_that_forbids_commercial_use_is_stated() -> None:
    record = weights.find(TrainConfig(model="tf_efficientnet_lite0")).record
    assert weights.licence_warning(record) is None
    assert weights.licence_warning(replace(record, licence=None)) is None
    for licence in ("cc-by-nc-4.0", "CC-BY-NC-SA-4.0", "fair-noncommercial-research"):
        assert licence in (weights.licence_warning(replace(record, licence=licence)) or "")


class NothingThere(BaseHTTPRequestHandler):
    """A hub that answers 404 to everything."""

    def do_HEAD(self) -> None:
        self.send_response(404)
        self.send_header("X-Error-Code", "RepoNotFound")
        self.end_headers()

    do_GET = do_HEAD  # noqa: N815

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def hub() -> Iterator[str]:
    server = HTTPServer(("127.0.0.1", 0), NothingThere)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.long
def test_without_the_hub_a_run_ends_early_and_says_what_helps(photos: Path, tmp_path: Path, hub: str) -> None:
    arguments = ("--data", photos, "--out", tmp_path / "runs", "--model", "resnet18")
    cases: tuple[tuple[dict[str, Any], str], ...] = (
        ({"HF_ENDPOINT": hub}, "404"),
        ({"HF_ENDPOINT": "http://127.0.0.1:9"}, "the hub cannot be reached"),
        ({"HF_HUB_OFFLINE": "1"}, "HF_HUB_OFFLINE is set"),
    )
    for environment, reason in cases:
        done = command(*arguments, HF_HOME=str(tmp_path / "hub"), **environment)
        assert done.returncode == 7, done.stderr
        assert reason in done.stderr
        for helps in ("hf download timm/resnet18", "--weights FILE", "--weights none"):
            assert helps in done.stderr
        assert not list((tmp_path / "runs").glob("*-resnet18")), "the data was not read, and the name is free"
        assert "Traceback" not in done.stderr
