"""Independent command lines of this program side by side, each in its own process, with its own cores or GPU."""

import importlib
import multiprocessing
import os
import sys
from collections import deque
from collections.abc import Callable, Iterable
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
LOOK_EVERY_S = 1.0
PRELOADED = [COMMAND_LINE, "torch._dynamo"]
"""Imported once, in the process that all others are forked from: that takes longer than training on small data."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """A command line, and the file that takes what it prints."""

    name: str
    arguments: list[str]
    log: Path


def run(
    jobs: Iterable[Job],
    *,
    at_a_time: int,
    threads: int,
    ended: Callable[[Job, int], None],
    hopeless: Callable[[Job], bool] = lambda job: False,
) -> None:
    """Run each job in a process of its own and hand its exit code, or minus the signal that killed it, to `ended`.

    The next job is asked for when there is room for it. One that is `hopeless`, asked every second, is stopped.

    `threads` is what each computes with, however many run, so that results do not depend on that. Whatever ends this
    function ends the jobs, which are given time to save themselves; so does the death of this process.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    gpus = visible_gpus()
    waiting, free = iter(jobs), deque(range(at_a_time))
    running: dict[int, tuple[Job, int, ForkServerProcess]] = {}
    stopped: set[int] = set()  # a second signal would not let a run save itself
    try:
        while True:
            while free and (job := next(waiting, None)) is not None:
                slot = free.popleft()
                gpu = gpus[slot % len(gpus)] if gpus else None
                process = context.Process(target=_work, args=(job, threads, gpu), name=job.name)
                process.start()
                running[process.sentinel] = job, slot, process
            if not running:
                break
            for sentinel in wait(list(running), timeout=LOOK_EVERY_S):
                assert isinstance(sentinel, int)
                job, slot, process = running.pop(sentinel)
                process.join()
                assert process.exitcode is not None
                free.append(slot)
                stopped.discard(sentinel)
                ended(job, process.exitcode)
            for sentinel in running.keys() - stopped:
                job, _, process = running[sentinel]
                if hopeless(job):
                    process.terminate()
                    stopped.add(sentinel)
    finally:
        for sentinel in running.keys() - stopped:
            running[sentinel][2].terminate()
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
