"""What an index of training images costs the service: python -m tests.bench.similar --rows 100000 --features 1280."""

import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np
import psutil
import tyro

from serving.contract.decode import Digest
from serving.contract.neighbours.file import read_index, to_bytes
from serving.contract.neighbours.index import Metric, TrainingIndex

MIB = 2**20
DIRECTIONS = 64


@dataclass(frozen=True, kw_only=True)
class Options:
    """Time the search in an index of random embeddings, and the reading of its file."""

    rows: tuple[int, ...] = (1_000, 10_000, 100_000)
    features: int = 1280
    searches: int = 20


def index(rows: int, features: int) -> TrainingIndex:
    """Random embeddings of length 1, with paths of 25 characters."""
    rng = np.random.default_rng(0)
    directions, _ = np.linalg.qr(rng.normal(size=(features, min(features, DIRECTIONS))))
    metric = Metric(
        centre=np.zeros(features, np.float32),
        directions=directions.astype(np.float32),
        shrink=np.linspace(-0.9, 0, directions.shape[1], dtype=np.float32),
        scale=1.4,
    )
    points = (rng.standard_normal((rows, features), np.float32) / np.float32(features**0.5)).astype(np.float16)
    images = [(f"class {row % 10}/image {row:07d}.jpg", Digest(f"{row:064x}")) for row in range(rows)]
    labels = np.arange(rows, dtype=np.int32) % 10
    return TrainingIndex.of(metric, tuple(map(str, range(10))), points, labels, images)


def measured(path: Path, digest: Digest, options: Options) -> str:
    """A row of the table: MB of the file, seconds and MiB to read and check it, milliseconds of a search."""
    before, start = psutil.Process().memory_info().rss, time.perf_counter()
    found = read_index(path, digest)
    read_s, held = time.perf_counter() - start, psutil.Process().memory_info().rss - before
    rng, times, cpu = np.random.default_rng(1), [], []
    for _ in range(options.searches):
        embedding = rng.standard_normal(options.features, np.float32)
        embedding /= np.float32(np.linalg.norm(embedding))
        begun, used = time.perf_counter(), time.thread_time()
        found.nearest(embedding, 5)
        times.append(time.perf_counter() - begun)
        cpu.append(time.thread_time() - used)
    figures = [path.stat().st_size / 1e6, read_s, held / MIB, median(times) * 1e3, median(cpu) * 1e3]
    return " | ".join(("", f"{len(found.paths):,}", *(f"{figure:.1f}" for figure in figures), "")).strip()


def main(options: Options) -> None:
    """Print a table in Markdown."""
    print(
        "| rows | file, MB | read, s | memory, MiB | search, ms | of it a core, ms |\n|---:|---:|---:|---:|---:|---:|"
    )
    with tempfile.TemporaryDirectory() as folder:
        for rows in options.rows:
            path = Path(folder, f"{rows}.neighbours.npz")
            made = index(rows, options.features)
            path.write_bytes(to_bytes(made))
            digest = made.digest
            del made
            print(measured(path, digest, options), flush=True)


if __name__ == "__main__":
    main(tyro.cli(Options))
