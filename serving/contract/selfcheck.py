"""The lines of `python -m training check` and `python -m serving check`, as a table and in one check.json for both."""

import json
import platform
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from time import perf_counter
from typing import Literal

import onnxruntime

from serving.contract import gpu

FILE = "check.json"
NO_GPU = "there is no GPU"


class Skipped(Exception):
    """A line that cannot be tried here; the message says why."""


@dataclass(frozen=True, kw_only=True)
class Result:
    """What a line that passed has shown."""

    detail: str
    numbers: dict[str, float] = field(default_factory=dict)
    """What was measured, by name and unit."""


@dataclass(frozen=True, kw_only=True)
class CheckLine:
    """A line of the table."""

    name: str
    status: Literal["passed", "failed", "skipped"]
    detail: str
    """What was shown, what failed, or why it was not tried."""
    seconds: float
    numbers: dict[str, float]

    def __str__(self) -> str:
        """As it is printed."""
        return f"{self.status:8}{self.name:29}{self.seconds:6.1f} s  {self.detail}"


class SelfCheck:
    """Tries one thing after another; what fails ends its own line and no other."""

    def __init__(self, side: Literal["training", "serving"]) -> None:
        self._side = side
        self.lines: list[CheckLine] = []

    def try_line(self, name: str, attempt: Callable[[], Result]) -> None:
        """Add a line and print it: passed with what `attempt` returns, skipped if it raises Skipped, else failed."""
        start, status, numbers = perf_counter(), "passed", {}
        try:
            result = attempt()
            detail, numbers = result.detail, result.numbers
        except Skipped as reason:
            status, detail = "skipped", str(reason)
        except Exception as error:  # whatever it is, the other lines are tried
            status, detail = "failed", f"{type(error).__name__}: {error}"
        seconds = round(perf_counter() - start, 3)
        self.lines.append(CheckLine(name=name, status=status, detail=detail, seconds=seconds, numbers=numbers))  # type: ignore[arg-type]
        print(self.lines[-1], flush=True)

    @property
    def failed(self) -> list[str]:
        """The names of the lines that failed."""
        return [line.name for line in self.lines if line.status == "failed"]

    def write(self, folder: Path) -> Path:
        """Write check.json in `folder`, where the lines of the other side stay; returns its path. Raises OSError."""
        path = folder / FILE
        folder.mkdir(parents=True, exist_ok=True)
        record = json.loads(path.read_text()) if path.exists() else {}
        record[self._side] = {
            "time": datetime.now(UTC).isoformat(timespec="seconds"),
            "machine": f"{platform.system()} {platform.release()} {platform.machine()}",
            "python": platform.python_version(),
            "lines": [asdict(line) for line in self.lines],
        }
        path.write_text(json.dumps(record, indent=1) + "\n")
        return path

    def summary(self, path: Path) -> str:
        """The last lines on the console: how many lines have which status, and where they are."""
        counts = {
            status: sum(line.status == status for line in self.lines) for status in ("passed", "failed", "skipped")
        }
        shown = ", ".join(f"{count} {status}" for status, count in counts.items())
        without = "" if gpu.gpus() else "\nThere is no GPU: no line says how one behaves."
        return f"\n{self._side}: {shown}; {path}{without}"


def driver() -> Result:
    """NVIDIA's driver, which must run CUDA 13."""
    version, cuda = gpu.driver_version(), gpu.cuda_version()
    if version is None and cuda is None:
        raise Skipped("NVIDIA's driver is not installed")
    if cuda is None or cuda < gpu.NEEDED_CUDA:
        newest = "no CUDA" if cuda is None else f"CUDA {cuda[0]}.{cuda[1]}"
        raise RuntimeError(f"driver {version} runs {newest}; {gpu.NEEDED_DRIVER}")
    return Result(detail=f"driver {version or 'of unknown version'}, CUDA {cuda[0]}.{cuda[1]}")


def card() -> Result:
    """The devices that CUDA shows."""
    cards = gpu.gpus()
    if not cards and gpu.visible():
        raise RuntimeError(f"{', '.join(map(str, gpu.device_files()))} but CUDA shows no device")
    if not cards:
        raise Skipped(NO_GPU)
    shown = "; ".join(f"{card}, {card.memory / 2**30:.0f} GiB" for card in cards)
    return Result(detail=shown, numbers={"gpus": float(len(cards))})


def providers() -> Result:
    """ONNX Runtime and the processors that it was built for."""
    available = [name.removesuffix("ExecutionProvider") for name in onnxruntime.get_available_providers()]
    return Result(detail=f"onnxruntime {onnxruntime.__version__}: {', '.join(available)}")
