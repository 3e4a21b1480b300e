import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.conftest import ROOT
from training.config import ConfigError, TrainConfig


def command(*arguments: object, cwd: Path = ROOT, **environment: str) -> subprocess.CompletedProcess[str]:
    variables = os.environ | {"PYTHONPATH": str(ROOT)} | environment
    return subprocess.run(
        [sys.executable, "-W", "error", "-m", "training", *map(str, arguments)],
        cwd=cwd,
        env=variables,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"epochs": 0}, "--epochs: expected above 0, got 0"),
        ({"lr": -1.0}, "--lr"),
        ({"dropout": 1.0}, "--dropout"),
        ({"image_size": 4}, "--image-size: expected 8 or more, got 4"),
        ({"mean": (0.5,)}, "--mean and std"),
        ({"mean": (0.5,), "std": (0.5,)}, "of 3 number"),
        ({"val_fraction": 0.6, "test_fraction": 0.5}, "together below 1"),
        ({"patience": 0}, "--patience"),
        ({"name": "../elsewhere"}, "--name"),
        ({"hidden": (512, 0)}, "--hidden"),
    ],
)
def test_a_value_that_cannot_be_followed_is_refused_by_name(options: dict[str, object], expected: str) -> None:
    with pytest.raises(ConfigError, match=expected):
        TrainConfig(**options)


def test_the_configuration_reads_back_from_yaml() -> None:
    config = TrainConfig(data=Path("x"), hidden=(7, 8))
    values = yaml.safe_load(config.to_yaml())
    assert set(values) == {field.name for field in dataclasses.fields(TrainConfig)}
    assert values["hidden"] == [7, 8]
    assert values["data"] == "x"


def test_what_was_left_open_is_decided_and_what_was_given_is_kept() -> None:
    small = TrainConfig().settled(image_size=64, training_images=300)
    assert (small.image_size, small.augment, small.batch_size, small.lr) == (64, "light", 16, 3e-3)
    assert TrainConfig().settled(image_size=16, training_images=300).batch_size == 32
    large = TrainConfig(model="mlp").settled(image_size=28, training_images=55_000)
    assert (large.augment, large.batch_size, large.lr, large.workers) == ("none", 64, 1e-3, 0)
    given = TrainConfig(augment="strong", batch_size=7, lr=0.5, workers=3, image_size=32)
    assert given.settled(image_size=32, training_images=1000) == given


def test_help_shows_every_option_with_its_sentence() -> None:
    done = command("--help")
    assert done.returncode == 0
    for field in dataclasses.fields(TrainConfig):
        assert f"--{field.name.replace('_', '-')}" in done.stdout
    assert "residual network" in done.stdout


def test_a_wrong_option_or_value_says_what_is_possible() -> None:
    done = command("--modle", "cnn")
    assert done.returncode == 2
    assert "--modle" in done.stderr
    assert "--model" in done.stderr
    done = command("train", "--model", "vit")
    assert done.returncode == 2
    assert "'vit'" in done.stderr
    assert "('mlp', 'cnn')" in done.stderr
    done = command("--epochs", "0")
    assert done.returncode == 2
    assert "expected above 0, got 0" in done.stderr


def test_exit_codes(tmp_path: Path, photos: Path) -> None:
    out = ("--out", tmp_path / "runs")
    done = command("--data", tmp_path / "absent", *out)
    assert (done.returncode, done.stdout) == (3, "")
    assert "there is no such file or folder" in done.stderr
    done = command("--data", photos, "--lr", "1e30", "--model", "mlp", "--augment", "none", *out)
    assert done.returncode == 4, done.stderr
    assert "a lower --lr" in done.stderr
    assert not (tmp_path / "runs" / "latest").exists()
    done = command("--data", photos, "--device", "cuda", *out, CUDA_VISIBLE_DEVICES="")
    assert done.returncode == 8
    assert "--device cpu" in done.stderr
    (tmp_path / "runs" / "taken").mkdir()
    done = command("--data", photos, "--name", "taken", *out)
    assert done.returncode == 2
    assert "taken" in done.stderr


def test_an_output_folder_that_cannot_be_written_is_noticed_before_any_data_is_read(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    done = command("--data", tmp_path / "absent", "--out", tmp_path / "file")
    assert done.returncode == 6, "absent data would have been 3"
    assert str(tmp_path / "file") in done.stderr
