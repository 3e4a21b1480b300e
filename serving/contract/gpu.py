"""NVIDIA's devices as the driver and the system show them. No CUDA library is needed or loaded."""

import ctypes
import os
import re
from dataclasses import dataclass
from pathlib import Path

COMPUTE_CAPABILITY_MAJOR, COMPUTE_CAPABILITY_MINOR = 75, 76
"""CUdevice_attribute, https://docs.nvidia.com/cuda/cuda-driver-api/group__CUDA__TYPES.html"""

NEEDED_CUDA = (13, 0)
NEEDED_DRIVER = "CUDA 13 needs R580 or newer"


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """A device that CUDA can use."""

    name: str
    capability: tuple[int, int]
    """Compute capability: which kernels the device runs."""
    memory: int
    """Bytes."""

    def __str__(self) -> str:
        return f"{self.name} (compute capability {self.capability[0]}.{self.capability[1]})"


def gpus() -> tuple[Gpu, ...]:
    """The devices that CUDA can use, in its order; none without a driver. CUDA_VISIBLE_DEVICES may hide some.

    A process that has called this must not use CUDA in a fork of itself.
    """
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return ()
    if driver.cuInit(0) != 0:
        return ()
    return tuple(_gpu(driver, number) for number in range(_integer(driver.cuDeviceGetCount)))


def cuda_version() -> tuple[int, int] | None:
    """The newest CUDA that the driver runs; None without a driver."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
    version = _integer(driver.cuDriverGetVersion)
    return version // 1000, version % 1000 // 10


def driver_version(root: Path = Path("/")) -> str | None:
    """The version of NVIDIA's kernel module, such as 580.65.06; None where it is not loaded."""
    try:
        text = (root / "proc" / "driver" / "nvidia" / "version").read_text()
    except OSError:
        return None
    match = re.search(r"\b\d{3}\.\d+(\.\d+)*\b", text)
    return match[0] if match else None


def device_files(root: Path = Path("/")) -> list[Path]:
    """The files of NVIDIA's devices that this process may reach: in a container, those that were given to it."""
    return sorted((root / "dev").glob("nvidia[0-9]*"))


def machine_has_gpu(root: Path = Path("/")) -> bool:
    """Whether the machine has a device of NVIDIA, also one that this process cannot use."""
    listed = root / "proc" / "driver" / "nvidia" / "gpus"
    return bool(device_files(root)) or (listed.is_dir() and any(listed.iterdir()))


def hidden() -> bool:
    """Whether CUDA_VISIBLE_DEVICES hides every device, as a user does who wants the CPU."""
    return os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1")


def visible(root: Path = Path("/")) -> bool:
    """Whether a device is meant for this process: CUDA can use one, or could with another driver or library."""
    return not hidden() and (bool(device_files(root)) or bool(gpus()))


def _gpu(driver: ctypes.CDLL, number: int) -> Gpu:
    name, device, memory = ctypes.create_string_buffer(256), ctypes.c_int(0), ctypes.c_size_t(0)
    driver.cuDeviceGet(ctypes.byref(device), number)
    driver.cuDeviceGetName(name, len(name), device)
    driver.cuDeviceTotalMem_v2(ctypes.byref(memory), device)
    major, minor = (
        _integer(driver.cuDeviceGetAttribute, attribute, device)
        for attribute in (COMPUTE_CAPABILITY_MAJOR, COMPUTE_CAPABILITY_MINOR)
    )
    return Gpu(name=name.value.decode(errors="replace"), capability=(major, minor), memory=memory.value)


def _integer(call: "ctypes._NamedFuncPointer", *arguments: object) -> int:
    """What a function of the driver writes through its first argument; 0 where it fails."""
    value = ctypes.c_int(0)
    return value.value if call(ctypes.byref(value), *arguments) == 0 else 0
