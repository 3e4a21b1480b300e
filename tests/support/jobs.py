"""`torchrun` and the trainers that it starts."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

from tests.support.paths import ROOT
from tests.support.processes import children
from tests.support.server import free_port

Process = subprocess.Popen[str]


class DistributedJob:
    """`torchrun` with several processes, or the processes alone; what is left of it at the end is killed."""

    def __init__(self) -> None:
        self.processes: list[Process] = []

    def __enter__(self) -> "DistributedJob":
        return self

    def __exit__(self, *_: object) -> None:
        for process in self.processes:
            for child in trainers_of(process):
                os.kill(child, signal.SIGKILL)
            if process.poll() is None:
                process.kill()
            process.communicate()

    def torchrun(self, *arguments: str, processes: int = 2, options: tuple[str, ...] = ()) -> Process:
        launcher = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={processes}", *options]
        return self._start([*launcher, "-m", "training", *arguments])

    def plain(self, *arguments: str) -> list[Process]:
        """Two processes that know one another by the environment alone."""
        together = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
        command = [sys.executable, "-m", "training", *arguments]
        return [self._start(command, **together, RANK=str(rank)) for rank in range(2)]

    def _start(self, command: list[str], **environment: str) -> Process:
        self.processes.append(
            subprocess.Popen(
                command,
                cwd=ROOT,
                env=os.environ | environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                start_new_session=True,
            )
        )
        return self.processes[-1]


def trainers_of(launcher: Process) -> list[int]:
    """The trainers that a torchrun has started, by rank; none once it has ended."""
    found = []
    for pid in children(launcher.pid) if launcher.poll() is None else ():
        try:
            [rank] = re.findall(r"\0RANK=(\d+)\0", Path(f"/proc/{pid}/environ").read_text())
            found.append((int(rank), pid))
        except (FileNotFoundError, ProcessLookupError, ValueError):
            continue
    return [pid for _, pid in sorted(found)]


def read_until(process: Process, beginning: str) -> str:
    """What a process prints up to a line that begins so."""
    assert process.stdout is not None
    lines = []
    for line in process.stdout:
        lines.append(line)
        if line.startswith(beginning):
            return "".join(lines)
    raise AssertionError("".join(lines))


def done(process: Process, code: int = 0) -> str:
    """What a process prints until it ends, with this exit code."""
    printed, _ = process.communicate(timeout=240)
    assert process.returncode == code, printed
    return printed
