"""Processes of a Ray cluster, each with the model.

Tasks of Ray Core, and not Ray Data: what was lost with a process or a node is done again on any other, rows keep the
order of the images, and the parts of the table are those of the plain command, so that it resumes what this one began,
and the reverse.
"""

import hashlib
import logging
import os
import platform
import re
import socket
import sys
from collections.abc import Iterator
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import cv2
import ray
from ray.exceptions import RayError, RayTaskError

from serving.batch.parts import Part
from serving.batch.predict import FilePredictor
from serving.batch.workers import CHUNKS_PER_WORKER, Pool
from serving.contract.model import Classifier, ModelRefused, open_model
from serving.contract.session import Placement
from serving.cores import available_cores
from serving.settings import Settings

LOCAL = "local"
"""The address of a cluster that does not exist yet."""
ANSWER_S = 5
"""Seconds in which a cluster must answer."""
WAIT_S = 60
"""Seconds between two lines that say what is waited for."""
RETRIES = 3
"""How often a chunk is done again, which ends the processes that try it, such as by an image that ends the decoder."""
STORE_BYTES = 80_000_000
"""The smallest object store that Ray starts. It holds the model; rows are too small for it."""


@dataclass(frozen=True)
class RayCluster:
    """The cluster at an address as `ray.init` takes it, or a new one on this machine. Needs the extra `ray`."""

    address: str
    most: int | None
    """Chunks that are under way at most, in a new cluster its processes; None: as many as there are CPUs or GPUs."""

    def open_model(self, settings: Settings) -> Classifier:
        """On the CPU, since the machine that submits often has no GPU. Raises ModelRefused."""
        return open_model(settings.file, placement=Placement(on="cpu"), key=settings.public_key)

    @contextmanager
    def started(self, root: Path, settings: Settings, model: Classifier) -> Iterator[Pool]:
        """See Workers. Raises ConnectionError; FileNotFoundError where a node does not see the folder; ModelRefused."""
        data = settings.file.read_bytes()
        if hashlib.sha256(data).hexdigest() != model.digest:
            raise ModelRefused(f"{settings.file}: has become another file meanwhile")
        self._connect(len(data))
        try:
            kind = _resource(settings)
            job = ray.put(Job(root.absolute(), settings, ray.put(data)))
            # A task with a GPU would otherwise end its process, and the next one open the model again.
            task = ray.remote(max_retries=RETRIES, max_calls=0, **{f"num_{kind.lower()}s": 1})(_predict)
            _wait_for_worker(task.remote(job, []), kind)
            yield Pool(lambda paths: task.remote(job, paths).future(), lambda: self._limit(kind))
        except RayTaskError as error:
            raise error.cause from None
        except RayError as error:
            raise BrokenProcessPool(f"--ray {self.address}: {_first_line(error)}") from error
        finally:
            ray.shutdown()

    def _connect(self, model_bytes: int) -> None:
        """Raises ConnectionError."""
        os.environ["RAY_USAGE_STATS_ENABLED"] = "0"  # a cluster that is started here reports to nobody
        new: dict[str, Any] = {}
        if self.address == LOCAL:
            store = STORE_BYTES + 2 * model_bytes
            new = {"num_cpus": self.most or available_cores(), "include_dashboard": False, "object_store_memory": store}
        _knock(self.address)
        try:
            ray.init(self.address, log_to_driver=False, logging_level=logging.ERROR, **new)
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise ConnectionError(f"--ray {self.address}: {_first_line(error)}") from error

    def _limit(self, kind: str) -> int:
        if self.most is not None and self.address != LOCAL:
            return self.most
        return CHUNKS_PER_WORKER * max(int(ray.cluster_resources().get(kind, 0)), 1)


@dataclass(frozen=True)
class Job:
    """What a process needs to begin."""

    root: Path
    settings: Settings
    model: Any
    """Reference to the bytes of the model file, which the submitting process has verified."""


class _Process:
    """The state of a process of the cluster, which works for one command only."""

    predictor: FilePredictor | None = None


def _predict(job: Job, paths: list[str]) -> Part:
    if _Process.predictor is None:
        _Process.predictor = _opened(job)
    return _Process.predictor.predict(paths)


def _opened(job: Job) -> FilePredictor:
    """Raises ModelRefused, FileNotFoundError."""
    if not job.root.is_dir():
        raise FileNotFoundError(f"{job.root}: not on node {platform.node()}; all nodes must see the images by one path")
    cv2.setNumThreads(1)
    with TemporaryDirectory(prefix="twinlens-") as folder:
        file = Path(folder, job.settings.file.name)
        file.write_bytes(ray.get(job.model))
        return FilePredictor(open_model(file, placement=job.settings.placement()), job.root, job.settings)


def _resource(settings: Settings) -> str:
    """What Ray keeps for a task. It hides the GPUs from those that did not ask for one."""
    has_gpu = "GPU" in ray.cluster_resources()
    return "GPU" if settings.require_gpu is True or (settings.require_gpu == "auto" and has_gpu) else "CPU"


def _wait_for_worker(ready: Any, kind: str) -> None:
    """Wait until a process has opened the model. Raises what prevented it, as RayTaskError."""
    while not ray.wait([ready], timeout=WAIT_S)[0]:
        print(f"waiting for a free {kind} of the Ray cluster", file=sys.stderr, flush=True)
    ray.get(ready)


def _knock(address: str) -> None:
    """Raise ConnectionError where nobody answers, which Ray tries for a minute and says in a page of logs."""
    if match := re.fullmatch(r"(?:ray://)?([^/]+):(\d+)", address):
        try:
            socket.create_connection((match[1].strip("[]"), int(match[2])), ANSWER_S).close()
        except OSError as error:
            raise ConnectionError(f"--ray {address}: does not answer ({error.strerror or error})") from error


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]
