"""`python -m training` as forks of a process that has imported everything: each starts five seconds earlier.

A fork is a process of its own, with its own arguments, folder, output and exit code. It has the variables of the first
process, and libraries read some of them on import: a command with variables of its own is no case for it.
"""

import atexit
import gc
import importlib
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import warnings
from functools import cache
from pathlib import Path

from tests.support.paths import ROOT

IMPORTED = (
    "training.__main__",
    "torch.onnx",
    "onnxruntime",
    "matplotlib.backends.backend_agg",
    "matplotlib.backends.backend_svg",
    "sklearn.ensemble",
)
REQUEST_BYTES = 1 << 16
_LOCK = threading.Lock()


def _environment() -> dict[str, str]:
    """The variables of a command, as of now, without those that pytest changes for each test."""
    return {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}


_AT_IMPORT = _environment()


class _Origin:
    """The process that is forked, as long as the tests run."""

    def __init__(self) -> None:
        self.socket, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        command = [sys.executable, "-m", __name__, str(other.fileno())]
        environment = _AT_IMPORT | {"PYTHONPATH": str(ROOT)}
        self._process = subprocess.Popen(command, cwd=ROOT, pass_fds=[other.fileno()], env=environment)
        atexit.register(self._end)  # a process that runs when its object is collected is a warning, here an error
        other.close()

    def _end(self) -> None:
        self._process.kill()
        self._process.wait()


@cache
def _origin() -> _Origin:
    return _Origin()


def can_run() -> bool:
    """Whether the variables are those with which everything is imported."""
    return _environment() == _AT_IMPORT


def run(arguments: list[str], cwd: Path, timeout: float, *, strict: bool) -> "subprocess.CompletedProcess[str]":
    """Run a command to its end; a `strict` one ends at a warning. Raises subprocess.TimeoutExpired."""
    command = [sys.executable, "-m", "training", *arguments]
    read, write = os.pipe()
    with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as errors, os.fdopen(read) as status:
        request = json.dumps({"arguments": arguments, "cwd": str(cwd), "strict": strict}).encode()
        assert len(request) < REQUEST_BYTES
        with _LOCK:
            socket.send_fds(_origin().socket, [request], [output.fileno(), errors.fileno(), write])
        os.close(write)
        pid = int(status.readline())
        timer = threading.Timer(timeout, os.kill, (pid, signal.SIGKILL))
        timer.start()
        code = int(status.readline())
        if not timer.is_alive():
            raise subprocess.TimeoutExpired(command, timeout)
        timer.cancel()
        texts = []
        for file in (output, errors):
            file.seek(0)
            texts.append(file.read().decode())
    return subprocess.CompletedProcess(command, code, *texts)


def _serve(requests: socket.socket) -> None:
    """Fork for each request; returns in the child that is to run it."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the processes that wait
    while True:
        data, files, _, _ = socket.recv_fds(requests, REQUEST_BYTES, 3)
        if not data:
            os._exit(0)
        if not os.fork():
            break
        for file in files:
            os.close(file)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    requests.close()
    output, errors, status = files
    if child := os.fork():
        os.write(status, f"{child}\n".encode())
        _, ended = os.waitpid(child, 0)
        os.write(status, f"{os.waitstatus_to_exitcode(ended)}\n".encode())
        os._exit(0)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(output, 1)
    os.dup2(errors, 2)
    for file in files:
        os.close(file)
    request = json.loads(data)
    os.chdir(request["cwd"])
    sys.argv[1:] = request["arguments"]
    if request["strict"]:
        warnings.simplefilter("error")


if __name__ == "__main__":
    for name in IMPORTED:
        importlib.import_module(name)
    del sys.modules["training.__main__"]  # it is run, again
    threads = len(list(Path("/proc/self/task").iterdir()))
    assert threads == 1, f"a fork would lack {threads - 1} threads of the process"
    gc.freeze()
    _serve(socket.socket(fileno=int(sys.argv[1])))
    runpy.run_module("training", run_name="__main__", alter_sys=True)
