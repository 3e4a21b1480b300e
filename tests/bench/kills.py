"""What being killed costs a training: `python -m tests.bench.kills --data DATA --epochs 20`, after one run of it.

Whole runs and runs of which the trainer is killed (SIGKILL) five times, alternating; each at a random moment of a fifth
of the time that the whole run before it took. Needs a machine that does nothing else.
"""

import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import tyro

from tests.conftest import ROOT

IMPORTS_S = 5
"""After the start nothing is trained for so long."""


@dataclass(frozen=True, kw_only=True)
class Kills:
    """What to train, how often it is killed, and how many pairs of runs are made."""

    data: Path
    epochs: int = 20
    kills: int = 5
    rounds: int = 6


def run(bench: Kills, out: Path, moments: list[float]) -> float:
    """Seconds that a training took, killed at so many seconds from its start."""
    command = [sys.executable, "-m", "training", "--data", str(bench.data.resolve()), "--epochs", str(bench.epochs)]
    command += ["--out", str(out), "--cache", str(out / "cache")]
    begun = time.monotonic()
    watcher = subprocess.Popen(
        [*command, "--max-restarts", str(len(moments))], cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    for moment in moments:
        time.sleep(max(0.0, begun + moment - time.monotonic()))
        [trainer] = Path(f"/proc/{watcher.pid}/task/{watcher.pid}/children").read_text().split()
        os.kill(int(trainer), signal.SIGKILL)
    if watcher.wait():
        raise RuntimeError(f"the training ended with {watcher.returncode}")
    return time.monotonic() - begun


def main(bench: Kills) -> None:
    """Print a line a pair, then all of them together."""
    wholes, killed = [], []
    with tempfile.TemporaryDirectory() as folder:
        run(bench, Path(folder), [])  # fills the cache
        for number in range(bench.rounds):
            draw = random.Random(number)
            wholes.append(run(bench, Path(folder), []))
            part = (wholes[-1] - IMPORTS_S) / bench.kills
            moments = [IMPORTS_S + part * (kill + draw.random()) for kill in range(bench.kills)]
            killed.append(run(bench, Path(folder), moments))
            print(f"{wholes[-1]:.1f} s, killed {bench.kills} times {killed[-1]:.1f} s: {killed[-1] / wholes[-1]:.3f}")
    ratios = [one / other for one, other in zip(killed, wholes, strict=True)]
    print(f"together {sum(killed) / sum(wholes):.3f} ({min(ratios):.3f} to {max(ratios):.3f})")


if __name__ == "__main__":
    main(tyro.cli(Kills))
