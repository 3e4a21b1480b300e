"""The processes that train one model together, as torchrun starts them; a process alone is a group of one.

Each takes its part of every batch, gradients are averaged (DistributedDataParallel), and the first one alone writes
and speaks. Counts and decisions travel by gloo between the CPUs, gradients of GPUs by NCCL.
"""

import os
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, nullcontext, redirect_stdout, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from types import TracebackType
from typing import TypeVar

import numpy as np
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed import PrefixStore  # type: ignore[attr-defined]
from torch.distributed.rendezvous import rendezvous
from torch.nn.parallel import DistributedDataParallel

from training.errors import ConfigError, ProcessLost

T = TypeVar("T")

PATIENCE = timedelta(hours=6)
"""Who dies is noticed at once, by its connections; who prepares data or exports for long is not thought dead."""
MEETING = timedelta(minutes=30)
"""Machines may start one after the other."""
POLL_S = 0.05
STAY_S = 2.0
"""For processes that fail together; one that was killed is waited for in vain."""


@dataclass(kw_only=True, eq=False)
class Group:
    """`size` processes, of which this one is number `rank`; on its machine, number `local_rank` of `local_size`.

    `with group:` meets the others and leaves with them; in it the methods raise ProcessLost when one is gone. Alone,
    nothing is waited for and every method is its own trivial case.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1
    _store: dist.Store | None = field(default=None, init=False)
    _silence: ExitStack = field(default_factory=ExitStack, init=False)

    @classmethod
    def from_environment(cls) -> "Group":
        """What torchrun says, or whoever else sets RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT; else alone."""
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
        """Whether this is the process that writes and speaks."""
        return self.rank == 0

    def __enter__(self) -> None:
        if self.size == 1:
            return
        try:
            store, _, _ = next(rendezvous("env://", timeout=MEETING))
        except ValueError as error:
            raise ConfigError(f"RANK and WORLD_SIZE are set, as torchrun does, but {error}") from error
        if self.local_size == self.size:  # over a restart torchrun keeps its store on one machine, not on several
            store = PrefixStore(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"), store)
        self._store = store
        backends = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        try:
            dist.init_process_group(backends, store=store, rank=self.rank, world_size=self.size, timeout=PATIENCE)
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

    def part(self, count: int) -> range:
        """The places, of `count`, that are this process's: one run of them, its length equal to the others' to one."""
        return range(count * self.rank // self.size, count * (self.rank + 1) // self.size)

    def share(self, make: Callable[[], T]) -> T:
        """What `make` gives in the first process, in every process; what it raises there is raised in all."""
        if self.size == 1:
            return make()
        made: list[tuple[T | None, BaseException | None]] = [(None, None)]
        if self.first:
            try:
                made = [(make(), None)]
            except (Exception, SystemExit) as error:  # argument parsers exit
                made = [(None, error)]
        dist.broadcast_object_list(made)
        [(value, failure)] = made
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

    def meet(self) -> None:
        """Wait until every process is here, ready to be interrupted meanwhile."""
        if self.size == 1:
            return
        waiting = dist.all_reduce(torch.zeros(1), async_op=True)
        while not waiting.is_completed():
            time.sleep(POLL_S)
        waiting.wait()

    def parallel(self, model: nn.Sequential) -> nn.Module:
        """The model as all train it together: every step leaves the mean of all processes' gradients in it.

        It begins with the first process's weights. On GPUs its batch normalisation is made to measure whole batches
        (SyncBatchNorm, which there is for GPUs alone).
        """
        if self.size == 1:
            return model
        device = next(model.parameters()).device
        if device.type != "cuda":
            return DistributedDataParallel(model, forward_sync_buffers=False)
        nn.SyncBatchNorm.convert_sync_batchnorm(model)  # type: ignore[no-untyped-call]  # in place
        return DistributedDataParallel(model, device_ids=[device.index], forward_sync_buffers=False)

    def average_statistics(self, model: nn.Module) -> None:
        """Give batch normalisation that measures parts of batches, on CPUs, the mean of what all processes measured.

        A mean of unbiased variances is one. What is frozen is left alone.
        """
        measured = [
            statistic
            for layer in model.modules()
            if isinstance(layer, (nn.BatchNorm1d, nn.BatchNorm2d)) and layer.training
            for statistic in (layer.running_mean, layer.running_var)
            if statistic is not None
        ]
        if self.size == 1 or not measured:
            return
        flat = torch.cat(measured)
        dist.all_reduce(flat)
        means = torch.split(flat / self.size, [len(statistic) for statistic in measured])
        for statistic, mean in zip(measured, means, strict=True):
            statistic.copy_(mean)

    def fail(self, code: int, why: str) -> int:
        """The exit code of a group that fails: of the process that failed first, which alone says why."""
        told = False
        if self._store is not None:
            try:
                if self._store.add("failed", 1) > 1:
                    self._store.wait(["code"], timedelta(seconds=10))
                    code, told = int(self._store.get("code")), True
                else:
                    self._store.set("code", str(code))
            except dist.DistError:  # whoever kept the store is gone
                pass
        if not told:
            print(why, file=sys.stderr, flush=True)
        if self._store is not None and self.first:
            self._stay(self._store)
        return code

    def _stay(self, store: dist.Store) -> None:
        """The first process keeps the store: it lets those that fail with it ask there what it has said already."""
        until = time.monotonic() + STAY_S
        with suppress(dist.DistError):  # torchrun keeps it, and is gone
            while store.add("failed", 0) < self.size and time.monotonic() < until:
                time.sleep(POLL_S)


ALONE = Group()


def exchanging(model: nn.Module, *, last: bool) -> AbstractContextManager[None]:
    """In it a batch goes forward and backward: of the batches of one step, the last exchanges all their gradients."""
    return model.no_sync() if isinstance(model, DistributedDataParallel) and not last else nullcontext()
