"""A GPU that is not there: a driver that shows devices, and ONNX Runtime's CUDA provider computed by its CPU provider.

Only what needs a device is replaced: the driver's library and the provider. All else is ours or ONNX Runtime's own.
"""

import ctypes
import shutil
import subprocess
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from onnxruntime.capi.onnxruntime_pybind11_state import Fail

from serving.contract.session import CPU, CUDA

CARD = ("NVIDIA B200", (10, 0), 192 * 2**30)
NO_KERNEL = Fail("CUDA error cudaErrorNoKernelImageForDevice: no kernel image is available for execution on the device")


STRICT = "session.disable_cpu_ep_fallback"


OPEN = "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.65.06  Release Build  (dvs)  Sun Jul 27 06:54:38\n"
CLOSED = (
    "NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.183.01  Sun May 12 19:39:15 UTC 2024\nGCC version:  gcc 12\n"
)


def machine(root: Path, *, version: str | None = None, devices: int = 0, listed: int = 0) -> Path:
    """Files of a machine with a driver; `listed` devices are its own, `devices` are given to this process."""
    (root / "dev").mkdir()
    for name in ["nvidiactl", "nvidia-uvm", *map("nvidia{}".format, range(devices))] if devices else []:
        (root / "dev" / name).touch()
    if version is not None:
        (root / "proc" / "driver" / "nvidia" / "gpus").mkdir(parents=True)
        (root / "proc" / "driver" / "nvidia" / "version").write_text(version)
        for number in range(listed):
            (root / "proc" / "driver" / "nvidia" / "gpus" / f"0000:0{number}:00.0").mkdir()
    return root


class Driver(ctypes.CDLL):
    """The calls of libcuda that are used, as https://docs.nvidia.com/cuda/cuda-driver-api/ describes them."""

    def __init__(self, cards: list[tuple[str, tuple[int, int], int]], version: int) -> None:
        self._cards, self._version = cards, version  # no library is loaded

    def cuInit(self, flags: int) -> int:
        return 0 if self._cards else 100  # CUDA_ERROR_NO_DEVICE

    def cuDriverGetVersion(self, version: Any) -> int:
        version._obj.value = self._version
        return 0

    def cuDeviceGetCount(self, count: Any) -> int:
        count._obj.value = len(self._cards)
        return 0

    def cuDeviceGet(self, device: Any, number: int) -> int:
        device._obj.value = number
        return 0

    def cuDeviceGetName(self, name: Any, length: int, device: Any) -> int:
        name.value = self._cards[device.value][0].encode()[: length - 1]
        return 0

    def cuDeviceTotalMem_v2(self, memory: Any, device: Any) -> int:
        memory._obj.value = self._cards[device.value][2]
        return 0

    def cuDeviceGetAttribute(self, value: Any, attribute: int, device: Any) -> int:
        value._obj.value = self._cards[device.value][1][attribute - 75]
        return 0


LIBRARY = """
#include <string.h>
int cuInit(unsigned flags) { return 0; }
int cuDriverGetVersion(int *version) { *version = 13000; return 0; }
int cuDeviceGetCount(int *count) { *count = CARDS; return 0; }
int cuDeviceGet(int *device, int number) { *device = number; return 0; }
int cuDeviceGetName(char *name, int length, int device) { strncpy(name, "stand-in", length); return 0; }
int cuDeviceTotalMem_v2(size_t *memory, int device) { *memory = 1 << 30; return 0; }
int cuDeviceGetAttribute(int *value, int attribute, int device) { *value = attribute == 75 ? 9 : 0; return 0; }
"""


def library(folder: Path, cards: int) -> Path:
    """The same driver as a library, for other processes: in this folder, which LD_LIBRARY_PATH is to name."""
    if shutil.which("cc") is None:
        pytest.skip("there is no C compiler")
    command: list[str | Path] = [
        "cc",
        "-shared",
        "-fPIC",
        f"-DCARDS={cards}",
        "-x",
        "c",
        "-",
        "-o",
        folder / "libcuda.so.1",
    ]
    subprocess.run(command, input=LIBRARY, text=True, check=True)
    return folder


@dataclass
class Provider:
    """The stand-in for the CUDA provider; `sizes` are the batches that it has run, `options` those it was opened with.

    `fails` gives the error of a run by its number of images, None where it succeeds; `leaves` are operators for the
    CPU.
    """

    fails: Callable[[int], Exception | None] = lambda images: None
    leaves: set[str] = field(default_factory=set)
    sizes: list[int] = field(default_factory=list)
    options: list[dict[str, str]] = field(default_factory=list)


def is_strict(options: Any) -> bool:
    """Whether the session refuses the CPU; an entry that was not set cannot be read."""
    with suppress(RuntimeError):
        return bool(options.get_session_config_entry(STRICT) == "1")
    return False


def session_class(provider: Provider) -> type[onnxruntime.InferenceSession]:
    """ONNX Runtime's session, which leaves to the provider what asks for CUDA."""
    original = onnxruntime.InferenceSession

    class Session(original):  # type: ignore[misc,valid-type]
        """A session that reports CUDA where it was asked for."""

        def __init__(self, graph: Any, sess_options: Any = None, providers: Any = None, **more: Any) -> None:
            self._cuda = providers[0][0] == CUDA
            options = sess_options
            if self._cuda:
                provider.options.append(providers[0][1])
                if is_strict(options):
                    assert len(providers) == 1, "ONNX Runtime refuses a session with CPU that forbids the CPU"
                    if provider.leaves:
                        raise Fail("This session contains graph nodes that are assigned to the default CPU EP, but ...")
                    options.log_severity_level = 4
                    options.add_session_config_entry(STRICT, "0")
            super().__init__(graph, options, providers=[CPU], **more)

        def get_providers(self) -> list[str]:
            return [CUDA, CPU] if self._cuda else [CPU]

        def get_provider_graph_assignment_info(self) -> list[Any]:
            parts: list[Any] = super().get_provider_graph_assignment_info()
            return [part for part in parts if {node.op_type for node in part.get_nodes()} & provider.leaves]

        def run(self, names: Any, feeds: dict[str, np.ndarray], *more: Any) -> Any:
            if self._cuda:
                [images] = feeds.values()
                provider.sizes.append(len(images))
                if error := provider.fails(len(images)):
                    raise error
            return super().run(names, feeds, *more)

    return Session


def install(
    patch: pytest.MonkeyPatch,
    provider: Provider,
    cards: list[tuple[str, tuple[int, int], int]] | None = None,
    cuda_version: int = 13000,
) -> None:
    """Let this process see `cards`, by default one, and run sessions that ask for CUDA by `provider`."""
    driver, library = Driver([CARD] if cards is None else cards, cuda_version), ctypes.CDLL

    def opened(name: str | None, *positional: Any, **named: Any) -> ctypes.CDLL:
        return driver if name == "libcuda.so.1" else library(name, *positional, **named)

    patch.setattr(ctypes, "CDLL", opened)
    patch.setattr(onnxruntime, "get_available_providers", lambda: [CUDA, CPU])
    patch.setattr(onnxruntime, "preload_dlls", lambda: None)
    patch.setattr(onnxruntime, "InferenceSession", session_class(provider))
