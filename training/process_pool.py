"""A process pool for command lines of this program: each in a process of its own, with its own cores or GPU."""

import importlib
import multiprocessing
import os
import signal
import sys
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from threading import Thread

import cv2
import joblib
import torch

COMMAND_LINE = "training.__main__"
POLL_S = 1.0
PRELOADED = [COMMAND_LINE, "training.train"]
"""Imported once, by the server process that all others are forked from: importing takes longer than training on small
data."""


@dataclass(frozen=True, kw_only=True)
class TrainingJob:
    """A command line of this program, and the file for its output."""

    name: str
    arguments: list[str]
    log: Path


@dataclass(frozen=True, kw_only=True)
class _Running:
    job: TrainingJob
    slot: int
    process: BaseProcess


class ProcessPool:
    """Runs jobs, at most `size` at the same time, each with `threads` threads.

    The number of threads does not depend on the number of jobs, so neither do the results. `ended` gets each job and
    its exit code, or minus the number of the signal that killed it. `hopeless` is called for each running job every
    second; where it returns True, the job gets SIGTERM.
    """

    def __init__(
        self,
        *,
        size: int,
        threads: int,
        ended: Callable[[TrainingJob, int], None],
        hopeless: Callable[[TrainingJob], bool] = lambda job: False,
    ) -> None:
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(PRELOADED)
        self._threads = threads
        self._ended = ended
        self._hopeless = hopeless
        self._gpus = visible_gpus()
        self._free_slots = deque(range(size))
        self._running: dict[int, _Running] = {}
        """By sentinel."""
        self._terminated: set[int] = set()
        """Sentinels. A second SIGTERM would end a run before it has saved itself."""

    def run(self, jobs: Iterable[TrainingJob]) -> None:
        """Run all jobs; the next is taken from `jobs` when a slot is free.

        When this raises, running jobs get SIGTERM and are waited for, so that they can save themselves. They get it
        also when this process dies.
        """
        waiting = iter(jobs)
        try:
            while True:
                while self._free_slots and (job := next(waiting, None)) is not None:
                    self._start(job)
                if not self._running:
                    break
                for sentinel in wait(list(self._running), timeout=POLL_S):
                    assert isinstance(sentinel, int)
                    self._finish(sentinel)
                self._stop_hopeless()
        finally:
            self._stop(list(self._running))
            for running in self._running.values():
                running.process.join()

    def _start(self, job: TrainingJob) -> None:
        slot = self._free_slots.popleft()
        gpu = self._gpus[slot % len(self._gpus)] if self._gpus else None
        process = self._context.Process(target=_work, args=(job, self._threads, gpu), name=job.name)
        process.start()
        self._running[process.sentinel] = _Running(job=job, slot=slot, process=process)

    def _finish(self, sentinel: int) -> None:
        running = self._running.pop(sentinel)
        running.process.join()
        assert running.process.exitcode is not None
        self._free_slots.append(running.slot)
        self._terminated.discard(sentinel)
        self._ended(running.job, running.process.exitcode)

    def _stop_hopeless(self) -> None:
        candidates = self._running.keys() - self._terminated
        self._stop([sentinel for sentinel in candidates if self._hopeless(self._running[sentinel].job)])

    def _stop(self, sentinels: Iterable[int]) -> None:
        for sentinel in set(sentinels) - self._terminated:
            self._running[sentinel].process.terminate()
            self._terminated.add(sentinel)


def pool_size(jobs: int | None, threads: int, device: str) -> int:
    """The number of --jobs; None: one for each GPU of `--device`, else as many as the cores allow."""
    gpus = 0 if device == "cpu" else len(visible_gpus())
    return jobs or gpus or max(joblib.cpu_count() // threads, 1)


def visible_gpus() -> list[str]:
    """For each GPU that this process sees, the value of CUDA_VISIBLE_DEVICES that shows a process that one only."""
    named = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    return named[: torch.cuda.device_count()] or [str(number) for number in range(torch.cuda.device_count())]


def _work(job: TrainingJob, threads: int, gpu: str | None) -> None:
    os.setsid()  # Ctrl-C reaches the pool's own process only, which sends each job one SIGTERM
    # Not signals.end_with_parent: for the kernel, the parent of this process is the server it is forked from.
    Thread(target=_end_with_pool, daemon=True).start()
    with job.log.open("ab") as log:
        for stream in (sys.stdout, sys.stderr):
            os.dup2(log.fileno(), stream.fileno())
    if gpu is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpu
    os.environ["OMP_NUM_THREADS"] = str(threads)  # for processes that the job starts
    torch.set_num_threads(threads)
    cv2.setNumThreads(threads)
    sys.exit(importlib.import_module(COMMAND_LINE).main(job.arguments))


def _end_with_pool() -> None:
    pool = multiprocessing.parent_process()
    assert pool is not None
    pool.join()
    os.kill(os.getpid(), signal.SIGTERM)
