"""How training grows with the number of images: python -m tests.bench.data.scale --folder FOLDER.

JPEG files of one size are made, in two classes. Training is started twice on them: the first run reads and audits
them, the second uses the cache. The first is stopped after one epoch, the second after --epochs. This is done with one
process and with several, each time from an empty cache. What was measured before in the same folder, of the same model
and size, stays in the table.
"""

import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import median
from threading import Thread
from typing import NamedTuple

import cv2
import numpy as np
import psutil
import tyro
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator
from pydantic import TypeAdapter

PER_FOLDER = 10_000
POLL_S = 0.2
MIB = 2**20
TRAINED = 0.7
"""Share of the images that the training split has."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """Time the trainer on data of several sizes."""

    folder: Path
    """For images, cache, results, `scale.png` and `log.txt`, what the runs print as errors; images that are there
    are not made again."""
    images: tuple[int, ...] = (1_000, 10_000, 100_000)
    processes: tuple[int, ...] = (1, 2)
    """Of a run; more than one are started by torchrun."""
    side: int = 64
    """Of each image, in pixels."""
    model: str = "mlp"
    epochs: int = 3
    """Of the second run, two or more; the first of them is left out of the time of an epoch."""


@dataclass(frozen=True, kw_only=True)
class Costs:
    """What one run took: seconds from its start to its first epoch and for an epoch, and the memory of a process.

    The memory is the greatest of the largest process.
    """

    start_s: float
    epoch_s: float
    resident_mib: float
    private_mib: float
    """Without the mapped pages of files, which the system takes back when it needs them."""


class Row(NamedTuple):
    """One number of images, with one number of processes."""

    images: int
    processes: int
    first: Costs
    """Of the run that reads and audits the files."""
    second: Costs
    """Of the run that finds them in the cache."""


ROWS = TypeAdapter(list[Row])


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


def run(options: Options, data: Path, processes: int, epochs: int) -> Costs:
    """Start a training, and stop it when it has ended this number of epochs."""
    together = ["-m", "torch.distributed.run", "--nproc-per-node", processes] if processes > 1 else []
    command = [sys.executable, *together, "-m", "training", "--data", data, "--model", options.model]
    command += ["--image-size", options.side, "--out", options.folder / "runs", "--cache", options.folder / "cache"]
    command += ["--promote", "never", "--epochs", 1000]
    started = time.perf_counter()
    with (options.folder / "log.txt").open("a") as log:
        process = psutil.Popen([str(part) for part in command], stdout=subprocess.PIPE, stderr=log, text=True)
    peaks = [0.0, 0.0]

    def watch() -> None:
        while process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
            for one in (process, *process.children(recursive=True)):
                with suppress(psutil.NoSuchProcess):  # it has ended since it was listed
                    memory = one.memory_info()
                    private = memory.rss - memory.shared
                    peaks[:] = max(peaks[0], memory.rss / MIB), max(peaks[1], private / MIB)
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
                if len(ends) == epochs:
                    process.terminate()
    process.wait()
    watcher.join()
    if len(ends) < epochs:
        raise RuntimeError(f"the run on {data} ended before its epochs: see {options.folder / 'log.txt'}")
    each = [end - start for start, end in pairwise(ends)] or [ends[0] - start_s]
    return Costs(start_s=start_s, epoch_s=median(each), resident_mib=peaks[0], private_mib=peaks[1])


def measure(options: Options, images: int, processes: int) -> Row:
    """Both runs, from an empty cache on."""
    data = make(options.folder, images, options.side)
    for old in ("cache", "runs"):
        shutil.rmtree(options.folder / old, ignore_errors=True)
    first, second = (run(options, data, processes, epochs) for epochs in (1, options.epochs))
    return Row(images, processes, first, second)


def table(rows: list[Row]) -> Iterator[str]:
    """A line for each number of images and of processes: the first run, and the second, which uses the cache."""
    titles = ["images", "processes", "first start, s", "MiB (private)", "second start, s", "MiB (private)"]
    yield f"| {' | '.join([*titles, 'an epoch, s', 'images/s'])} |"
    yield "|---:" * (len(titles) + 2) + "|"
    for images, processes, first, second in rows:
        cells = [f"{images:,}", f"{processes}"]
        for costs in (first, second):
            cells += [f"{costs.start_s:.1f}", f"{costs.resident_mib:,.0f} ({costs.private_mib:,.0f})"]
        yield f"| {' | '.join(cells)} | {second.epoch_s:.2f} | {TRAINED * images / second.epoch_s:,.0f} |"


def draw(rows: list[Row]) -> Figure:
    """Seconds and memory by the number of images, both on logarithmic scales; dashed lines with several processes."""
    figure = Figure(figsize=(9, 4.6), layout="constrained")
    seconds, memory = figure.subplots(1, 2)
    for processes in sorted({row.processes for row in rows}):
        some = [row for row in rows if row.processes == processes]
        images = [row.images for row in some]
        label = "" if processes == 1 else f", {processes} processes"
        style = {"marker": "o", "linestyle": "-" if processes == 1 else "--"}
        seconds.plot(images, [row.first.start_s for row in some], color="C0", label=f"first start{label}", **style)
        seconds.plot(images, [row.second.start_s for row in some], color="C1", label=f"second start{label}", **style)
        seconds.plot(images, [row.second.epoch_s for row in some], color="C2", label=f"an epoch{label}", **style)
        resident = [max(row.first.resident_mib, row.second.resident_mib) for row in some]
        private = [max(row.first.private_mib, row.second.private_mib) for row in some]
        memory.plot(images, resident, color="C3", label=f"resident{label}", **style)
        memory.plot(images, private, color="C4", label=f"private{label}", **style)
    for axes, unit in ((seconds, "seconds"), (memory, "MiB of the largest process")):
        axes.set(xscale="log", xlabel="images", ylabel=unit)
        axes.xaxis.set(ticks=sorted({row.images for row in rows}), minor_locator=NullLocator())
        axes.xaxis.set_major_formatter("{x:,.0f}")
        axes.grid(alpha=0.3)
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.18), ncols=2, fontsize="small")
    seconds.set_yscale("log")
    seconds.yaxis.set(major_locator=LogLocator(subs=(1, 2, 5)), major_formatter="{x:g}", minor_locator=NullLocator())
    memory.set_ylim(bottom=0)
    return figure


def main() -> None:
    options = tyro.cli(Options)
    kept, rows = options.folder / f"{options.model}-{options.side}.json", []
    if kept.exists():
        rows = ROWS.validate_json(kept.read_bytes())
    for images in options.images:
        for processes in options.processes:
            others = [row for row in rows if (row.images, row.processes) != (images, processes)]
            rows = sorted([*others, measure(options, images, processes)], key=lambda row: (row.images, row.processes))
            kept.write_bytes(ROWS.dump_json(rows))
            print("\n".join(table(rows)), flush=True)
            draw(rows).savefig(options.folder / "scale.png", dpi=120)


if __name__ == "__main__":
    main()
