"""SageMaker's contract, in a folder that stands for /opt/ml."""

import json
import os
import subprocess
from pathlib import Path

import pytest

from tests.support.paths import ROOT
from tests.support.server import free_port
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


@pytest.mark.slow
def test_a_job_trains_by_its_hyperparameters_and_leaves_the_model(opt_ml: Path, photos: Path) -> None:
    (opt_ml / "input" / "data").mkdir()
    (opt_ml / "input" / "data" / "training").symlink_to(photos)
    assert __main__.main(["train"], opt_ml) == 0
    left = {path.name for path in (opt_ml / "model").iterdir()}
    assert left == {"model.onnx", "config.yaml", "audit.json", "predictions.csv", "predictions-val.csv", "report"}
    config = (opt_ml / "model" / "config.yaml").read_text()
    assert "batch_norm: true" in config
    assert "lr: 0.001" in config
    assert not (opt_ml / "output" / "failure").exists()
    assert not (opt_ml / "output" / "data").exists()
    assert __main__.main(["train"], opt_ml) == 0, "started again, it finds its run finished"
    given = opt_ml / "input" / "config" / "hyperparameters.json"
    given.write_text(given.read_text().replace("1e-3", "1e-2"))
    assert __main__.main(["train"], opt_ml) == 7
    assert "--lr was 0.001, now it is 0.01" in (opt_ml / "output" / "failure").read_text()


@pytest.mark.slow
def test_a_model_that_is_not_promoted_is_kept_where_nothing_serves_it(opt_ml: Path, photos: Path) -> None:
    (opt_ml / "input" / "data").mkdir()
    (opt_ml / "input" / "data" / "training").symlink_to(photos)
    given = json.loads((opt_ml / "input" / "config" / "hyperparameters.json").read_text())
    given |= {"floor": "[sensitivity:blue=1.0]"}
    (opt_ml / "input" / "config" / "hyperparameters.json").write_text(json.dumps(given))
    assert __main__.main(["train"], opt_ml) == 0
    left = {path.name for path in (opt_ml / "model").iterdir()}
    assert left == {"config.yaml", "audit.json", "predictions.csv", "predictions-val.csv", "report"}
    assert {path.name for path in (opt_ml / "output" / "data").iterdir()} == {"model.onnx"}


def test_a_failure_says_why_where_sagemaker_looks(opt_ml: Path) -> None:
    (opt_ml / "input" / "data" / "training").mkdir(parents=True)
    assert __main__.main(["train"], opt_ml) == 3
    reason = (opt_ml / "output" / "failure").read_text()
    assert str(opt_ml / "input" / "data" / "training") in reason
    sagemaker.fail("process 1 lost another of the 2 that train together", opt_ml)
    assert (opt_ml / "output" / "failure").read_text() == reason


def test_a_reason_that_cannot_be_written_is_in_the_log(opt_ml: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (opt_ml / "input" / "data" / "training").mkdir(parents=True)
    (opt_ml / "output").touch()
    assert __main__.main(["train"], opt_ml) == 3
    assert str(opt_ml / "input" / "data" / "training") in capsys.readouterr().err


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


def resources(root: Path, hosts: list[str], current: str) -> Path:
    (root / "input" / "config").mkdir(parents=True, exist_ok=True)
    listed = {"current_host": current, "hosts": hosts, "network_interface_name": "eth0"}
    (root / "input" / "config" / "resourceconfig.json").write_text(json.dumps(listed))
    return root


def test_there_are_as_many_processes_as_hosts_and_gpus(tmp_path: Path) -> None:
    assert sagemaker.torchrun(tmp_path, gpus=0) == sagemaker.torchrun(tmp_path, gpus=1) == []
    two = resources(tmp_path, ["algo-1", "algo-2"], "algo-2")
    expected = ["--nnodes=2", "--node-rank=1", "--nproc-per-node=8", "--master-addr=algo-1", "--master-port=29500"]
    assert sagemaker.torchrun(two, gpus=8)[3:] == expected
    assert "--nproc-per-node=1" in sagemaker.torchrun(two, gpus=0), "two machines without GPUs train together, too"
    one = resources(tmp_path, ["algo-1"], "algo-1")
    assert sagemaker.torchrun(one, gpus=1) == []
    assert "--nproc-per-node=4" in sagemaker.torchrun(one, gpus=4)


def test_a_host_that_is_not_listed_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"resourceconfig\.json: expected hosts and current_host"):
        sagemaker.torchrun(resources(tmp_path, ["algo-1", "algo-2"], "algo-3"), gpus=1)


MEET = """
import sys
from training.distributed import Group
group = Group.from_environment()
with group:
    print(f"process {group.rank} of {group.size}, sum {group.sum(1.0)[0]:.0f}", file=sys.stderr)
"""


@pytest.mark.long
def test_the_processes_of_two_hosts_meet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the command itself; both hosts are this machine."""
    monkeypatch.setattr(sagemaker, "PORT", free_port())
    (tmp_path / "meet.py").write_text(MEET)
    hosts = ["localhost", "127.0.0.1"]
    roots = {host: resources(tmp_path / host, hosts, host) for host in hosts}
    started = [
        subprocess.Popen(
            [*sagemaker.torchrun(root, gpus=0), str(tmp_path / "meet.py")],
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for root in roots.values()
    ]
    said = [process.communicate(timeout=120)[1] for process in started]
    assert [process.returncode for process in started] == [0, 0], said
    for rank, text in enumerate(said):
        assert f"process {rank} of 2, sum 2" in text


def test_train_is_an_ordinary_verb_elsewhere(tmp_path: Path) -> None:
    assert not sagemaker.started(["train"], tmp_path)
    (tmp_path / "input" / "config").mkdir(parents=True)
    assert sagemaker.started(["train"], tmp_path)
    assert not sagemaker.started(["train", "--epochs", "2"], tmp_path)
