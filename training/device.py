"""Where a run computes, and in what arithmetic."""

import torch

from training.config import TrainConfig


class DeviceMissing(RuntimeError):
    """The device asked for is not there; training never falls back silently."""


def find_device(name: str) -> torch.device:
    """The device of --device. Raises DeviceMissing."""
    if name == "cuda" and not torch.cuda.is_available():
        raise DeviceMissing("--device cuda: torch sees no GPU; --device cpu trains without one")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


def uses_bfloat16(config: TrainConfig, device: torch.device) -> bool:
    """Whether training computes in bfloat16: when asked to, or where the device has instructions for it."""
    if config.precision != "auto":
        return config.precision == "bfloat16"
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))
