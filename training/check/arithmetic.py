"""Lines of the check about torch and the arithmetic of the GPU."""

import torch
from torch.nn.functional import conv2d

from serving.contract import gpu
from serving.contract.selfcheck import NO_GPU, Result, Skipped
from training.device import full_float32, unusable_gpu

TF32 = 1e-4
"""A convolution in float32 differs from one in float64 by some 1e-6 of the largest value; in TF32 by more than this."""


def torch_sees_the_gpu() -> Result:
    """Every device that CUDA shows, torch sees and has kernels for."""
    built = f"torch {torch.__version__}"
    if not torch.cuda.is_available():
        if (reason := unusable_gpu()) is not None:
            raise RuntimeError(reason)
        raise Skipped(f"{built}: {NO_GPU}")
    count = torch.cuda.device_count()
    if count != len(gpu.gpus()):
        raise RuntimeError(f"torch sees {count} GPUs, CUDA {len(gpu.gpus())}")
    for number in range(count):
        torch.ones(2, 2, device=f"cuda:{number}").mm(torch.ones(2, 2, device=f"cuda:{number}")).sum().item()
    bfloat16 = "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "no bfloat16"
    cudnn = torch.backends.cudnn.version()  # type: ignore[no-untyped-call]
    return Result(detail=f"{built}, cuDNN {cudnn}, {count} GPUs, {bfloat16}")


def convolution_is_float32(device: torch.device) -> Result:
    """Where evaluation computes, cuDNN is on, and a convolution has the precision of float32, not of TF32."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(8, 64, 32, 32, generator=generator)
    weights = torch.randn(64, 64, 3, 3, generator=generator)
    with full_float32():
        enabled = torch.backends.cudnn.enabled
        computed = conv2d(images.to(device), weights.to(device)).cpu()
    exact = conv2d(images.double(), weights.double())
    difference = float((computed - exact).abs().max() / exact.abs().max())
    if not enabled:
        raise RuntimeError("cuDNN is off in evaluation")
    if difference > TF32:
        raise RuntimeError(f"a convolution differs from float64 by {difference:.1e} of its largest value: that is TF32")
    if device.type != "cuda":
        raise Skipped(f"{NO_GPU}; the flags are right, and the CPU differs from float64 by {difference:.1e}")
    return Result(detail=f"differs from float64 by {difference:.1e}", numbers={"difference": difference})
