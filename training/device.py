"""The device of a run and the precision of its arithmetic."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import joblib
import torch
from torch import nn

from serving.contract import gpu
from training.distributed import ALONE, Group
from training.errors import DeviceMissing
from training.options.settled import SettledConfig

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def find_device(name: str, group: Group = ALONE) -> torch.device:
    """The device that --device names; each process of a machine has a GPU of its own. Raises DeviceMissing.

    Prints a warning where `auto` takes the CPU of a machine that has a GPU. Limits PyTorch's threads to the cores of
    this process: PyTorch does not know a container's quota.
    """
    torch.set_num_threads(min(torch.get_num_threads(), joblib.cpu_count()))
    if name == "cuda" and not torch.cuda.is_available():
        raise DeviceMissing(f"--device cuda: {unusable_gpu() or 'torch sees no GPU'}; --device cpu trains without one")
    if name == "auto" and not torch.cuda.is_available() and (reason := unusable_gpu()):
        print(f"warning: {reason}; training runs on the CPU, --device cpu does so without this warning")
    device = torch.device("cpu")
    if name != "cpu" and torch.cuda.is_available():
        if group.local_rank >= (count := torch.cuda.device_count()):
            raise DeviceMissing(
                f"--device {name}: each process needs a GPU of its own; this machine has {group.local_size} processes "
                f"and {count} GPU(s); --device cpu trains without"
            )
        device = torch.device("cuda", group.local_rank)
        torch.cuda.set_device(device)
        if reason := _without_kernels(device):
            if name == "cuda":
                raise DeviceMissing(f"--device cuda: {reason}; --device cpu trains without one")
            print(f"warning: {reason}; training runs on the CPU, --device cpu does so without this warning")
            device = torch.device("cpu")
        torch.backends.cudnn.benchmark = True  # a run's batches have few shapes; each is timed once
    [with_gpu] = group.sum(device.type == "cuda")
    if 0 < with_gpu < group.size:
        raise DeviceMissing(
            f"--device {name}: {with_gpu:.0f} of {group.size} processes have a GPU; --device cpu trains without"
        )
    return device


def _without_kernels(device: torch.device) -> str | None:
    """Why the card cannot compute although torch shows it: torch has kernels for some generations of cards only."""
    try:
        torch.ones(1, device=device).add_(1).item()
    except torch.OutOfMemoryError:
        return None  # it computes; what fills it is explained when the run needs memory
    except RuntimeError as error:
        if "no kernel image" not in str(error):
            raise
        major, minor = torch.cuda.get_device_capability(device)
        return (
            f"this torch has no kernels for {torch.cuda.get_device_name(device)} (compute capability {major}.{minor}; "
            f"it has {' '.join(torch.cuda.get_arch_list())})"
        )
    return None


def unusable_gpu(root: Path = Path("/")) -> str | None:
    """Why torch sees no GPU although the machine has one of NVIDIA; None where it has none, or they are hidden."""
    if gpu.hidden() or not gpu.machine_has_gpu(root):
        return None
    driver = gpu.driver_version(root) or "unknown"
    if torch.version.cuda is None:
        reason = "this torch is built without CUDA"
    elif not gpu.device_files(root):
        reason = "this process may reach none; a container needs `docker run --gpus all`, or a limit of nvidia.com/gpu"
    else:
        reason = f"CUDA {torch.version.cuda} may need a newer driver ({gpu.NEEDED_DRIVER})"
    return f"there is a GPU of NVIDIA (driver {driver}), but torch sees none: {reason}"


def training_dtype(config: SettledConfig, model: nn.Module) -> torch.dtype:
    """The type that training computes in: what was asked for, or what the model's device has fast instructions for.

    GPUs before Ampere, such as a T4, have them for float16, and emulate bfloat16.
    On CPUs PyTorch has none for the gradients of depthwise convolutions: an EfficientNet-Lite0 of 128 px learned 67
    images/s in float32 and 49 in bfloat16, a ResNet-18, which has no such convolutions, 57 and 138.
    """
    if config.precision != "auto":
        return DTYPES[config.precision]
    if next(model.parameters()).device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    capabilities = torch.cpu.get_capabilities()
    depthwise = any(isinstance(layer, nn.Conv2d) and layer.groups > 1 for layer in model.modules())
    fast = not depthwise and (capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))
    return torch.bfloat16 if fast else torch.float32


@contextmanager
def sound_kernels(model: nn.Module) -> Iterator[None]:
    """Without oneDNN where it writes beyond its memory, which ends the process or changes numbers.

    That is the weights' gradient of a 1 x 1 convolution with a stride and fewer than 8 input channels, in channels-last
    memory on x86 CPUs without AVX-512 (torch 2.13.0; found on AVX2). RepVGG has one, of the colours of its image.
    """
    hit = any(
        isinstance(layer, nn.Conv2d) and layer.kernel_size == (1, 1) and max(layer.stride) > 1 and layer.in_channels < 8
        for layer in model.modules()
    )
    faulty = hit and not torch.cpu.get_capabilities().get("avx512_f")
    set_flags: Any = torch.backends.mkldnn.set_flags  # `flags` would set TF32, too, and warn of it
    enabled, *_ = set_flags(False if faulty else None, _fp32_precision=None)
    try:
        yield
    finally:
        set_flags(enabled, _fp32_precision=None)


@contextmanager
def full_float32() -> Iterator[None]:
    """Convolutions and matrix products of GPUs in float32, not in TF32, which rounds their factors to 10 bits.

    Evaluation needs it: the rounding is larger than the tolerance of the golden examples. So does --precision float32.
    cuDNN stays switched on, although `cudnn.flags` would switch it off by default; its other flags stay as they are.
    """
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    tf32 = matmul.allow_tf32
    matmul.allow_tf32 = False
    try:
        with cudnn.flags(
            enabled=True,
            benchmark=cudnn.benchmark,
            benchmark_limit=cudnn.benchmark_limit,
            deterministic=cudnn.deterministic,
            allow_tf32=False,
            fp32_precision="ieee",
        ):
            yield
    finally:
        matmul.allow_tf32 = tf32
