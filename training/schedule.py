"""Independent command lines of this program side by side, each in its own process, with its own cores or GPU."""

import importlib
import multiprocessing
import os
import sys
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import wait
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING

import cv2
import torch

if TYPE_CHECKING:
    from multiprocessing.context import ForkServerProcess

COMMAND_LINE = "training.__main__"
PRELOADED = [COMMAND_LINE, "torch._dynamo"]
"""Imported once, in the process that all others are forked from: that takes longer than training on small data."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """A command line, and the file that takes what it prints."""

    name: str
    arguments: list[str]
    log: Path


def run(jobs: Sequence[Job], *, at_a_time: int, threads: int, ended: Callable[[Job, int], None]) -> None:
    """Run each job in a process of its own and hand its exit code, or minus the signal that killed it, to `ended`.

    `threads` is what each computes with, however many run, so that results do not depend on that. Whatever ends this
    function ends the jobs, which are given time to save themselves; so does the death of this process.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    gpus = visible_gpus()
    waiting, slots = deque(jobs), deque(range(at_a_time))
    running: dict[int, tuple[Job, int, ForkServerProcess]] = {}
    try:
        while waiting or running:
            while waiting and slots:
                job, slot = waiting.popleft(), slots.popleft()
                gpu = gpus[slot % len(gpus)] if gpus else None
                process = context.Process(target=_work, args=(job, threads, gpu), name=job.name)
                process.start()
                running[process.sentinel] = job, slot, process
            for sentinel in wait(list(running)):
                assert isinstance(sentinel, int)
                job, slot, process = running.pop(sentinel)
                process.join()
                assert process.exitcode is not None
                slots.append(slot)
                ended(job, process.exitcode)
    finally:
        for _, _, process in running.values():
            process.terminate()
        for _, _, process in running.values():
            process.join()


def visible_gpus() -> list[str]:
    """What CUDA_VISIBLE_DEVICES may hold to show a process one of the GPUs that this one sees."""
    named = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    return named[: torch.cuda.device_count()] or [str(number) for number in range(torch.cuda.device_count())]


def _work(job: Job, threads: int, gpu: str | None) -> None:
    os.setsid()  # Ctrl-C goes to the study alone, which asks its jobs to stop, once
    Thread(target=_end_with_parent, daemon=True).start()
    with job.log.open("ab") as log:
        for stream in (sys.stdout, sys.stderr):
            os.dup2(log.fileno(), stream.fileno())
    if gpu is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpu
    os.environ["OMP_NUM_THREADS"] = str(threads)  # for processes that it starts
    torch.set_num_threads(threads)
    cv2.setNumThreads(threads)
    sys.exit(importlib.import_module(COMMAND_LINE).main(job.arguments))


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os.kill(os.getpid(), 15)
