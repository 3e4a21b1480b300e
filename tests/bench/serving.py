"""Compare this service with its peers, side by side on one core: `make bench-serving`, about half an hour.

Every round starts every server anew and loads one at a time, in an order that is drawn, while the others sleep; the
server has one core, the load generator the other. What is reported are ratios within a round, their median and their
range, and the ratio of two processes of our own, which says how far the run can be trusted.
"""

import json
import os
import platform
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil
import tyro

from serving.contract.model import ModelRefused
from tests.bench import table
from tests.bench.pictures import MODELS, ROOT, trained
from tests.bench.process import LOAD_CORE, Unavailable, install, packages
from tests.bench.rounds import Rounds
from tests.bench.servers import SERVERS, Server


@dataclass(frozen=True, kw_only=True)
class Options:
    """Compare the service with its peers. A full run wants a machine with two cores and nothing else to do."""

    rounds: int = 5
    """How often everything is measured, with servers started anew."""
    seconds: int = 4
    """Length of a block of closed-loop load. Open-loop blocks are twice as long, idleness is watched five times as
    long, and memory is read after 2,500 requests for each of these seconds."""
    model: str = "mlp"
    """mlp (12288-512-128-9, 64 px), cnn, large-cnn, lite0 (EfficientNet-Lite0, 224 px, also in eight bits), or a model
    file."""
    only: tuple[str, ...] = ()
    """Names of the servers to compare, such as twinlens FastAPI. None: all."""
    folder: Path = ROOT / ".bench"
    """Where the peers' environments, the models, the logs and the results go."""


def main() -> None:
    options = tyro.cli(Options)
    names = [server.name for server in SERVERS]
    if unknown := sorted(set(options.only) - set(names)):
        raise SystemExit(f"--only: no server {unknown[0]!r}; there are {', '.join(names)}")
    if missing := [program for program in ("wrk", "taskset") if not shutil.which(program)]:
        raise SystemExit(f"{missing[0]} is missing; on Debian `apt-get install wrk util-linux` brings it")
    if len(os.sched_getaffinity(0)) < 2:
        raise SystemExit("two cores are needed: one for the server, one for the load generator")
    folder = options.folder.resolve()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that the servers are stopped
    try:
        for results in run(options, folder, [server for server in SERVERS if server.name in (options.only or names)]):
            (folder / "serving.json").write_text(json.dumps(results, indent=1))
            (folder / "serving.md").write_text(table.markdown(results) + "\n")
    except ModelRefused as error:
        raise SystemExit(str(error)) from error
    except Unavailable as error:
        raise SystemExit(f"{error}; {folder}/serving.md holds the rounds before that") from error
    print((folder / "serving.md").read_text())


def run(options: Options, folder: Path, servers: list[Server]) -> Iterator[dict[str, Any]]:
    """Everything measured so far, after each round. A peer that does not install is left out, and they say why."""
    model = trained(options.model, folder) if options.model in MODELS else Path(options.model).resolve()
    installed: dict[Server, Path] = {}
    unavailable = []
    for server in servers:
        if not server.file(model).exists():
            unavailable.append(f"{server.name} has no file {server.file(model).name}")
            continue
        try:
            installed[server] = install(server, folder / "environments")
        except Unavailable as error:
            unavailable.append(str(error))
    conditions = environment(installed)
    os.sched_setaffinity(0, {LOAD_CORE})
    rounds = Rounds(installed, model, folder, options.seconds)
    for number in range(1, options.rounds + 1):
        rounds.run(number)
        yield {
            "environment": conditions,
            "rounds": number,
            "seconds": options.seconds,
            "model": options.model,
            "unavailable": unavailable,
            "blocks": rounds.blocks,
            "processes": rounds.processes,
        }


def environment(installed: dict[Server, Path]) -> dict[str, Any]:
    """Where and when, and with what: enough to judge the figures by."""
    processors = Path("/proc/cpuinfo").read_text().splitlines()
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "revision": _output("git", "describe", "--always", "--dirty"),
        "processor": next(line.partition(": ")[2] for line in processors if line.startswith("model name")),
        "cores": os.cpu_count(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "wrk": _output("wrk", "--version").partition(" [")[0],
        "packages": {server.name: packages(bin_folder) for server, bin_folder in installed.items()},
        "busy_before_percent": psutil.cpu_percent(2),
    }


def _output(*command: str) -> str:
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip()


if __name__ == "__main__":
    main()
