import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_hook

from serving.contract import gpu
from tests.support.configs import settled
from tests.support.cuda import CLOSED, machine
from tests.support.paths import ROOT
from tests.support.trainer import config
from training.device import find_device, full_float32, sound_kernels, unusable_gpu
from training.errors import DeviceMissing
from training.models.prediction import outputs
from training.options.config import TrainConfig
from training.train import train


@pytest.fixture
def _threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("_threads")
def test_threads_and_workers_are_no_more_than_a_container_s_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_num_threads(2)
    monkeypatch.setenv("LOKY_MAX_CPU_COUNT", "1")  # read by the same function as a cgroup's quota
    assert find_device("cpu") == torch.device("cpu")
    assert torch.get_num_threads() == 1
    assert settled(TrainConfig(), image_size=64, training_images=1000).workers == 0


def test_threads_asked_for_by_the_environment_stay() -> None:
    code = "import torch; from training.device import find_device; find_device('cpu'); print(torch.get_num_threads())"
    environment = os.environ | {"OMP_NUM_THREADS": "1", "LOKY_MAX_CPU_COUNT": "2"}
    assert subprocess.check_output([sys.executable, "-c", code], cwd=ROOT, env=environment, text=True) == "1\n"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_no_reason_to_train_without_one() -> None:
    with pytest.raises(DeviceMissing, match="torch sees no GPU; --device cpu trains without one"):
        find_device("cuda")


def test_a_gpu_for_which_torch_has_no_kernels_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As of a V100, which torch shows; the first kernel fails."""

    def first_kernel(*_: object, **__: object) -> None:
        raise torch.AcceleratorError("CUDA error: no kernel image is available for execution on the device")

    card = {"is_available": True, "device_count": 1, "get_device_name": "Tesla V100", "get_device_capability": (7, 0)}
    for name, value in {**card, "get_arch_list": ["sm_75", "sm_80"], "set_device": None}.items():
        monkeypatch.setattr(torch.cuda, name, lambda *_, value=value: value)
    monkeypatch.setattr(torch, "ones", first_kernel)
    reason = "this torch has no kernels for Tesla V100 (compute capability 7.0; it has sm_75 sm_80)"
    with pytest.raises(DeviceMissing, match=f"--device cuda: {re.escape(reason)}; --device cpu trains without one"):
        find_device("cuda")
    assert find_device("auto") == torch.device("cpu")
    assert capsys.readouterr().out.startswith(f"warning: {reason}; training runs on the CPU")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_torch_does_not_see_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    given, not_given, none = (tmp_path / name for name in ("given", "not given", "none"))
    for root in (given, not_given, none):
        root.mkdir()
    machine(given, version=CLOSED, devices=1, listed=1)
    machine(not_given, version=CLOSED, listed=1)
    assert unusable_gpu(machine(none)) is None
    known = "there is a GPU of NVIDIA (driver 535.183.01), but torch sees none: "
    assert unusable_gpu(given) == known + "this torch is built without CUDA"
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    assert unusable_gpu(given) == known + "CUDA 13.0 may need a newer driver (CUDA 13 needs R580 or newer)"
    assert str(unusable_gpu(not_given)).startswith(known + "this process may reach none; a container needs")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert unusable_gpu(given) is None, "hidden by the user"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_auto_warns_before_it_trains_on_the_cpu_of_a_machine_with_a_gpu(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(gpu, "machine_has_gpu", lambda root: True)
    for name, warned in {"auto": 1, "cpu": 0}.items():
        assert find_device(name) == torch.device("cpu")
        assert capsys.readouterr().out.count("warning: there is a GPU of NVIDIA (driver ") == warned
    with pytest.raises(DeviceMissing, match=r"--device cuda: there is a GPU of NVIDIA .* torch sees none"):
        find_device("cuda")


@pytest.fixture
def _flags() -> Iterator[None]:
    """Flags as another library may have left them, restored after the test."""
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = True
    with torch.backends.cudnn.flags(enabled=True, benchmark=True, deterministic=True, allow_tf32=True):
        yield
    torch.backends.cuda.matmul.allow_tf32 = before


def flags() -> dict[str, bool]:
    cudnn = torch.backends.cudnn
    return {
        "enabled": cudnn.enabled,
        "benchmark": cudnn.benchmark,
        "deterministic": cudnn.deterministic,
        "convolutions in tf32": cudnn.allow_tf32,
        "products in tf32": torch.backends.cuda.matmul.allow_tf32,
    }


@pytest.mark.usefixtures("_flags")
def test_full_float32_switches_tf32_off_and_leaves_cudnn_on() -> None:
    before = flags()
    with full_float32():
        assert flags() == before | {"convolutions in tf32": False, "products in tf32": False}
        assert flags()["enabled"]
        assert torch.backends.cudnn.conv.fp32_precision == "ieee"  # type: ignore[attr-defined]
        assert torch.backends.cuda.matmul.fp32_precision == "ieee"
        with full_float32():
            assert not flags()["convolutions in tf32"]
        assert flags()["enabled"], "evaluation within a run in float32"
    assert flags() == before


class Flags(nn.Module):
    """A layer that notes the flags that its forward passes see."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))
        self.seen: list[dict[str, bool]] = []

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.seen.append(flags())
        return images.float().mean((1, 2)) * self.scale


@pytest.mark.usefixtures("_flags")
def test_evaluation_computes_with_cudnn_and_without_tf32() -> None:
    layer = Flags()
    outputs(layer, np.zeros((3, 4, 4, 3), np.uint8))
    assert [(seen["enabled"], seen["convolutions in tf32"], seen["products in tf32"]) for seen in layer.seen] == [
        (True, False, False)
    ]


@pytest.mark.parametrize("avx512", [False, True])
def test_a_convolution_whose_gradient_overruns_memory_is_not_left_to_onednn(
    avx512: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_f": avx512})
    ordinary = [nn.Conv2d(3, 8, 1), nn.Conv2d(3, 8, 3, stride=2), nn.Conv2d(8, 8, 1, stride=2)]
    for layers, expected in ((ordinary, True), ([*ordinary, nn.Conv2d(3, 8, 1, stride=2)], avx512)):
        with sound_kernels(nn.Sequential(*layers)):
            assert torch.backends.mkldnn.enabled == expected
        assert torch.backends.mkldnn.enabled


@pytest.mark.usefixtures("_flags")
@pytest.mark.parametrize(("precision", "tf32"), [("float32", False), ("auto", True)])
def test_precision_float32_trains_without_tf32(
    photos: Path, tmp_path: Path, precision: Literal["auto", "float32"], tf32: bool
) -> None:
    seen = []
    hook = register_module_forward_hook(lambda module, *_: seen.append(flags()) if module.training else None)
    try:
        train(config(photos, tmp_path, name="x", model="mlp", hidden=(8,), epochs=1, precision=precision))
    finally:
        hook.remove()
    assert seen
    assert {(each["convolutions in tf32"], each["products in tf32"]) for each in seen} == {(tf32, tf32)}
    assert all(each["enabled"] for each in seen)
