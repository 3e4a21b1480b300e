"""The processes that train one model together, as torchrun starts them; a process alone is a group of one.

Each takes its part of every batch, and only the first one writes and prints. Counts and decisions travel by gloo
between the CPUs, gradients of GPUs by NCCL.
"""

import os
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack, redirect_stdout, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from types import TracebackType
from typing import TypeVar

import numpy as np
import torch
import torch.distributed as dist
from torch.distributed import PrefixStore  # type: ignore[attr-defined]
from torch.distributed.rendezvous import rendezvous

from training.errors import ConfigError, ProcessLost

T = TypeVar("T")

COLLECTIVE_TIMEOUT = timedelta(hours=6)
"""Closed connections reveal a crash at once; this only has to exceed the longest phase of the first process alone."""
NCCL_TIMEOUT = timedelta(minutes=10)
"""For gradients and batch statistics between GPUs: no process is alone then, and a machine that vanishes without
closing its connections would hold the others up."""
RENDEZVOUS_TIMEOUT = timedelta(minutes=30)
"""Time for all processes to connect: machines may start one after the other."""
POLL_S = 0.05
STAY_S = 2.0
"""The longest wait for other processes that fail; a killed one never reports."""


@dataclass(kw_only=True, eq=False)
class Group:
    """`size` processes, of which this one is number `rank`; on its machine, number `local_rank` of `local_size`.

    `with group:` connects the processes and disconnects them; in it the methods raise ProcessLost when one has ended.
    In a group of one nothing waits, and every method is its own trivial case.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1
    _store: dist.Store | None = field(default=None, init=False)
    _silence: ExitStack = field(default_factory=ExitStack, init=False)

    @classmethod
    def from_environment(cls) -> "Group":
        """The group that RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT describe, as torchrun sets them; else alone."""
        if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
            return cls()
        return cls(
            rank=int(os.environ["RANK"]),
            size=int(os.environ["WORLD_SIZE"]),
            local_rank=int(os.environ.get("LOCAL_RANK", "0")),
            local_size=int(os.environ.get("LOCAL_WORLD_SIZE", "1")),
        )

    @property
    def first(self) -> bool:
        """Whether this is the process that writes and prints."""
        return self.rank == 0

    def __enter__(self) -> None:
        if self.size == 1:
            return
        try:
            store, _, _ = next(rendezvous("env://", timeout=RENDEZVOUS_TIMEOUT))
        except ValueError as error:
            raise ConfigError(f"RANK and WORLD_SIZE are set, as torchrun does, but {error}") from error
        if self.local_size == self.size:  # over a restart torchrun keeps its store on one machine, not on several
            store = PrefixStore(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"), store)
        self._store = store
        backends = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        try:
            dist.init_process_group(
                backends, store=store, rank=self.rank, world_size=self.size, timeout=COLLECTIVE_TIMEOUT
            )
            if torch.cuda.is_available():
                set_collective_timeout("cuda", NCCL_TIMEOUT)
        except RuntimeError as error:
            raise self._lost() from error
        if not self.first:
            self._silence.enter_context(redirect_stdout(self._silence.enter_context(Path(os.devnull).open("w"))))

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self._silence.close()
        if self.size == 1:
            return
        if error is None:
            dist.destroy_process_group()
        elif isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and "gloo" in str(error)):
            raise self._lost() from error

    def _lost(self) -> ProcessLost:
        return ProcessLost(f"process {self.rank} lost another of the {self.size} that train together")

    def shard(self, count: int) -> range:
        """The contiguous shard of `count` items for this process; the shards' lengths differ by at most one."""
        return range(count * self.rank // self.size, count * (self.rank + 1) // self.size)

    def broadcast(self, make: Callable[[], T]) -> T:
        """The value of `make` in the first process, in every process; an exception there is raised in all."""
        if self.size == 1:
            return make()
        result: list[tuple[T | None, BaseException | None]] = [(None, None)]
        if self.first:
            try:
                result = [(make(), None)]
            except (Exception, SystemExit) as error:  # argument parsers exit
                result = [(None, error)]
        dist.broadcast_object_list(result)
        [(value, failure)] = result
        if failure is not None:
            raise failure
        return value  # type: ignore[return-value]

    def sum(self, *values: float) -> list[float]:
        """Each value added up over all processes, in float64; the same in every process."""
        total = torch.tensor(values, dtype=torch.float64)
        if self.size > 1:
            dist.all_reduce(total)
        return total.tolist()

    def gather(self, rows: np.ndarray) -> np.ndarray:
        """The rows of all processes, in their order, in every process."""
        if self.size == 1:
            return rows
        parts: list[np.ndarray] = [rows] * self.size
        dist.all_gather_object(parts, rows)
        return np.concatenate(parts)

    def barrier(self) -> None:
        """Wait until every process is here; a signal may interrupt the wait."""
        if self.size == 1:
            return
        work = dist.all_reduce(torch.zeros(1), async_op=True)
        while not work.is_completed():
            time.sleep(POLL_S)
        work.wait()

    def any(self, holds: bool) -> bool:
        """Whether it holds in any process; the same in every process."""
        return self.sum(holds)[0] > 0

    def fail(self, code: int, reason: str) -> int:
        """The exit code of the group: that of the process that failed first, which alone prints its reason."""
        first_code = self._code_of_the_first_to_fail(code)
        if first_code is None:
            print(reason, file=sys.stderr, flush=True)
        if self._store is not None and self.first:
            self._wait_for_others(self._store)
        return code if first_code is None else first_code

    def _code_of_the_first_to_fail(self, code: int) -> int | None:
        """Another process's exit code, if it failed before this one; otherwise share this one's with the others."""
        if self._store is None:
            return None
        with suppress(dist.DistError):  # the process that hosts the store has ended
            if self._store.add("failed", 1) > 1:
                self._store.wait(["code"], timedelta(seconds=10))
                return int(self._store.get("code"))
            self._store.set("code", str(code))
        return None

    def _wait_for_others(self, store: dist.Store) -> None:
        """The first process hosts the store: it stays until the other failing processes have read the exit code."""
        until = time.monotonic() + STAY_S
        with suppress(dist.DistError):  # torchrun hosts it, and has ended
            while store.add("failed", 0) < self.size and time.monotonic() < until:
                time.sleep(POLL_S)


def set_collective_timeout(device: str, timeout: timedelta) -> None:
    """Let collective operations on this type of device fail after `timeout`. Other types keep what they have.

    `init_process_group` takes one time for all of its backends.
    """
    assert dist.group.WORLD is not None
    dist.group.WORLD._get_backend(torch.device(device))._set_default_timeout(timeout)


ALONE = Group()
