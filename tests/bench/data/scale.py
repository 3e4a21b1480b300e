"""How training grows with the number of images: python -m tests.bench.data.scale --folder FOLDER.

JPEG files of one size are made, in two classes. Training is started twice on them: the first run reads and audits them,
the second uses the cache. Both are stopped after some epochs.
"""

import re
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import median
from threading import Thread

import cv2
import numpy as np
import psutil
import tyro

PER_FOLDER = 10_000
POLL_S = 0.2
MIB = 2**20
TRAINED = 0.7
"""Share of the images that the training split has."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """Time the trainer on data of several sizes."""

    folder: Path
    """For images and cache; images that are there are not made again."""
    images: tuple[int, ...] = (1_000, 10_000, 100_000)
    side: int = 64
    """Of each image, in pixels."""
    model: str = "mlp"
    epochs: int = 3
    """Of each run; the first is left out of the time of an epoch."""


@dataclass(frozen=True, kw_only=True)
class Figures:
    """What one run took: seconds from its start to its first epoch and for an epoch, and its greatest memory."""

    start_s: float
    epoch_s: float
    resident_mib: float
    private_mib: float
    """Without the mapped pages of files, which the system takes back when it needs them."""


def make(folder: Path, count: int, side: int) -> Path:
    """Files of coarse noise under a grain of their own, brighter in the second class."""
    data = folder / f"{count}-{side}"
    if (data / "complete").exists():
        return data
    for number in range(count):
        random = np.random.default_rng(number)
        coarse = random.integers(40, 200, (8, 8, 3), dtype=np.uint8)
        pixels = cv2.resize(coarse, (side, side), interpolation=cv2.INTER_CUBIC).astype(np.int16)
        pixels += random.integers(-12, 13, (side, side, 3), dtype=np.int16) + 20 * (number % 2)
        place = data / "ab"[number % 2] / str(number // PER_FOLDER)
        place.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(place / f"{number}.jpg"), np.clip(pixels, 0, 255).astype(np.uint8))
    (data / "complete").touch()
    return data


def run(options: Options, data: Path, name: str) -> Figures:
    """Start a training, and stop it after its epochs."""
    command = [sys.executable, "-m", "training", "--data", data, "--model", options.model, "--image-size", options.side]
    command += ["--out", options.folder / "runs", "--name", name, "--promote", "never", "--epochs", 1000]
    started = time.perf_counter()
    process = psutil.Popen([str(part) for part in command], stdout=subprocess.PIPE, text=True)
    peaks = [0.0, 0.0]

    def watch() -> None:
        while process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
            memory = process.memory_info()
            peaks[:] = max(peaks[0], memory.rss / MIB), max(peaks[1], (memory.rss - memory.shared) / MIB)
            time.sleep(POLL_S)

    watcher = Thread(target=watch)
    watcher.start()
    start_s, ends = 0.0, []
    with process.stdout as lines:
        for line in lines:
            now = time.perf_counter() - started
            if line.startswith("audit"):
                start_s = now
            if re.match(r"epoch +\d+/", line):
                ends.append(now)
                if len(ends) == options.epochs:
                    process.terminate()
    process.wait()
    watcher.join()
    if len(ends) < options.epochs:
        raise RuntimeError(f"the run {name} ended before its epochs")
    epochs = [end - start for start, end in pairwise(ends)]
    return Figures(start_s=start_s, epoch_s=median(epochs), resident_mib=peaks[0], private_mib=peaks[1])


def table(figures: dict[int, tuple[Figures, Figures]]) -> Iterator[str]:
    """A row for each number of images: the first run, and the second, which uses the cache."""
    yield "| images | first start, s | MiB (private) | second start, s | MiB (private) | an epoch, s | images/s |"
    yield "|---:|---:|---:|---:|---:|---:|---:|"
    for images, (first, second) in figures.items():
        cells = [f"{images:,}", f"{first.start_s:.1f}", f"{first.resident_mib:,.0f} ({first.private_mib:,.0f})"]
        cells += [f"{second.start_s:.1f}", f"{second.resident_mib:,.0f} ({second.private_mib:,.0f})"]
        yield f"| {' | '.join(cells)} | {second.epoch_s:.2f} | {TRAINED * images / second.epoch_s:,.0f} |"


def main() -> None:
    options = tyro.cli(Options)
    figures: dict[int, tuple[Figures, Figures]] = {}
    for count in options.images:
        data = make(options.folder, count, options.side)
        figures[count] = run(options, data, f"{count}-first"), run(options, data, f"{count}-second")
        print("\n".join(table(figures)), flush=True)


if __name__ == "__main__":
    main()
