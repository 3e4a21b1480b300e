"""SageMaker's contract, in a folder that stands for /opt/ml."""

import json
from pathlib import Path

import pytest

from training import __main__, sagemaker
from training.errors import ConfigError


@pytest.fixture
def opt_ml(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What SageMaker lays out before it starts a training image."""
    (tmp_path / "input" / "config").mkdir(parents=True)
    given = {"epochs": "1", "model": "mlp", "hidden": "[16]", "batch-norm": "true", "image-size": "16", "lr": "1e-3"}
    (tmp_path / "input" / "config" / "hyperparameters.json").write_text(json.dumps(given))
    monkeypatch.setenv("TRAINING_JOB_NAME", "job-1")
    return tmp_path


def test_a_job_trains_by_its_hyperparameters_and_leaves_the_model(opt_ml: Path, photos: Path) -> None:
    (opt_ml / "input" / "data").mkdir()
    (opt_ml / "input" / "data" / "training").symlink_to(photos)
    assert __main__.main(["train"], opt_ml) == 0
    left = {path.name for path in (opt_ml / "model").iterdir()}
    assert left == {"model.onnx", "config.yaml", "audit.json", "predictions.csv", "report"}
    config = (opt_ml / "model" / "config.yaml").read_text()
    assert "batch_norm: true" in config
    assert "lr: 0.001" in config
    assert not (opt_ml / "output" / "failure").exists()
    assert __main__.main(["train"], opt_ml) == 0, "started again, it finds its run finished"


def test_a_failure_says_why_where_sagemaker_looks(opt_ml: Path) -> None:
    (opt_ml / "input" / "data" / "training").mkdir(parents=True)
    assert __main__.main(["train"], opt_ml) == 3
    assert str(opt_ml / "input" / "data" / "training") in (opt_ml / "output" / "failure").read_text()


def test_an_unknown_hyperparameter_is_named(opt_ml: Path) -> None:
    (opt_ml / "input" / "config" / "hyperparameters.json").write_text('{"epoch": "3"}')
    assert __main__.main(["train"], opt_ml) == 2
    assert "'epoch'" in (opt_ml / "output" / "failure").read_text()
    (opt_ml / "input" / "config" / "hyperparameters.json").write_text("[1]")
    with pytest.raises(ConfigError, match=r"hyperparameters\.json"):
        sagemaker.options(opt_ml)


def test_channels_are_the_images_or_their_splits(opt_ml: Path) -> None:
    channels = opt_ml / "input" / "data"

    def data() -> str | None:
        arguments = sagemaker.options(opt_ml)
        return arguments[arguments.index("--data") + 1] if "--data" in arguments else None

    assert data() is None
    (channels / "train").mkdir(parents=True)
    assert data() == str(channels / "train")
    (channels / "train" / "labels.csv").touch()
    assert data() == str(channels / "train" / "labels.csv")
    (channels / "validation").mkdir()
    assert data() == str(channels)


def test_train_is_an_ordinary_verb_elsewhere(tmp_path: Path) -> None:
    assert not sagemaker.started(["train"], tmp_path)
    (tmp_path / "input" / "config").mkdir(parents=True)
    assert sagemaker.started(["train"], tmp_path)
    assert not sagemaker.started(["train", "--epochs", "2"], tmp_path)
