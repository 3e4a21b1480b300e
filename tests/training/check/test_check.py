"""`python -m training check`, as a command on this machine."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from serving.contract.model import open_model
from serving.contract.selfcheck import Skipped
from tests.support.trainer import command
from training.check import arithmetic, collectives
from training.check.runs import FAMILIES


def lines(folder: Path) -> dict[str, dict[str, Any]]:
    return {line["name"]: line for line in json.loads((folder / "check.json").read_text())["training"]["lines"]}


@pytest.mark.long
def test_the_command_trains_every_family_and_says_what_it_cannot_show(tmp_path: Path) -> None:
    done = command("check", "--out", tmp_path, OMP_NUM_THREADS="1")
    assert done.returncode == 0, done.stdout + done.stderr
    tried = lines(tmp_path)
    for family in FAMILIES:
        assert tried[f"train {family}"]["status"] == tried[f"step {family}"]["status"] == "passed"
        assert tried[f"train {family}"]["numbers"]["difference"] < 1e-4
        assert tried[f"step {family}"]["numbers"]["images/s"] > 0
        assert open_model(tmp_path / f"{family}.onnx").card.name.startswith(family)
    assert tried["eight bits"]["status"] == "passed"
    assert open_model(tmp_path / "cnn.int8.onnx").card.version.endswith("-int8")
    assert "Parity held" not in done.stdout, "what the runs print is in the log"
    assert "epoch 2/2" in (tmp_path / "training.log").read_text()
    if not torch.cuda.is_available():
        assert "There is no GPU: no line says how one behaves." in done.stdout
        skipped = {name for name, line in tried.items() if line["status"] == "skipped"}
        assert {
            "card",
            "torch",
            "cuDNN, no TF32",
            "torch on GPU beside CPU",
            "goldens of CPU on GPU",
            "NCCL",
        } <= skipped


@pytest.mark.long
def test_a_line_that_fails_is_the_exit_code(tmp_path: Path) -> None:
    """The models of the runs have no place: a folder has their name."""
    for family in FAMILIES:
        (tmp_path / f"{family}.onnx").mkdir()
    done = command("check", "--out", tmp_path, OMP_NUM_THREADS="1")
    assert done.returncode == 1
    assert f"error: train mlp, train cnn, train tf_efficientnet_lite0 failed; {tmp_path / 'check.json'}" in done.stderr
    assert lines(tmp_path)["train mlp"]["detail"].startswith("IsADirectoryError")


def test_tf32_would_be_noticed() -> None:
    """Factors rounded to ten bits, as TF32 does, differ by more than the limit; float32 by a hundredth of it."""
    with pytest.raises(Skipped, match=r"the flags are right, and the CPU differs from float64 by \d\.\de-0[678]$"):
        arithmetic.convolution_is_float32(torch.device("cpu"))
    generator = torch.Generator().manual_seed(0)
    images, weights = torch.randn(8, 64, 32, 32, generator=generator), torch.randn(64, 64, 3, 3, generator=generator)
    mask = torch.tensor(-(2**13), dtype=torch.int32)
    rounded = [(tensor.view(torch.int32) & mask).view(torch.float32).double() for tensor in (images, weights)]
    exact = torch.nn.functional.conv2d(images.double(), weights.double())
    difference = (torch.nn.functional.conv2d(rounded[0], rounded[1]) - exact).abs().max() / exact.abs().max()
    assert difference > 2 * arithmetic.TF32


@pytest.mark.gpu
@pytest.mark.timeout(600)
def test_on_this_machine_s_gpu_nothing_fails(tmp_path: Path) -> None:
    done = command("check", "--out", tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    tried = lines(tmp_path)
    assert [name for name, line in tried.items() if line["status"] == "skipped"] == []
    for family in FAMILIES:
        assert "CUDAExecutionProvider" in tried[f"train {family}"]["detail"]


@pytest.mark.long
def test_processes_add_up() -> None:
    """By gloo, where there are no two GPUs for NCCL."""
    assert collectives.torchrun(2, "cpu") == f"2 processes added up {collectives.ELEMENTS:,} values on cpu"
    with pytest.raises(RuntimeError, match="Error"):
        collectives.torchrun(1, "no device")


@pytest.mark.gpu
def test_nccl_adds_up_on_every_gpu() -> None:
    assert "on cuda" in collectives.gpus_add_up().detail
