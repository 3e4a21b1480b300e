"""Processes of this machine, each with the model."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import connection
from multiprocessing.queues import SimpleQueue
from pathlib import Path

import cv2

from serving.batch.parts import Part
from serving.batch.predict import FilePredictor
from serving.batch.workers import CHUNKS_PER_WORKER, Pool
from serving.contract import gpu
from serving.contract.decode import Digest
from serving.contract.model import Classifier, ModelRefused, open_model
from serving.cores import available_cores
from serving.settings import Settings


@dataclass(frozen=True)
class Processes:
    """A pool of this number of processes. When one is killed, all end, and the same command resumes."""

    number: int | None
    """None: `default_number`."""

    def open_model(self, settings: Settings) -> Classifier:
        """Raises ModelRefused."""
        return _open(settings)

    @contextmanager
    def started(self, root: Path, settings: Settings, model: Classifier) -> Iterator[Pool]:
        """See Workers."""
        context = multiprocessing.get_context("spawn")  # a fork copies the locks of threads, and CUDA forbids it
        gpus = len(gpu.gpus())
        devices = devices_of(self.number or default_number(model, gpus), gpus)
        queue = context.SimpleQueue()
        for device in devices:
            queue.put(device)
        with ProcessPoolExecutor(len(devices), context, initializer=_begin, initargs=(queue,)) as pool:
            try:
                job = Job(root, settings, model.digest)
                yield Pool(lambda paths: pool.submit(_predict, job, paths), lambda: len(devices) * CHUNKS_PER_WORKER)
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise


def default_number(model: Classifier, gpus: int) -> int:
    """One process for each GPU where the model runs on one, else one for each core: an eight-bit model needs cores."""
    return gpus if model.on_gpu else available_cores()


def devices_of(processes: int, gpus: int) -> list[int]:
    """The number of the GPU for each process, in turn; 0 where there is none."""
    return [process % max(gpus, 1) for process in range(processes)]


def _open(settings: Settings, device: int = 0) -> Classifier:
    """Raises ModelRefused."""
    return open_model(settings.file, placement=settings.placement(device), key=settings.public_key)


@dataclass(frozen=True)
class Job:
    """What a process needs to begin."""

    root: Path
    settings: Settings
    digest: Digest


class _Process:
    """The state of a process of the pool."""

    device = 0
    """Number of its GPU."""
    predictor: FilePredictor | None = None


def _begin(devices: "SimpleQueue[int]") -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent process ends the others
    threading.Thread(target=_end_with_parent, daemon=True).start()
    cv2.setNumThreads(1)
    _Process.device = devices.get()


def _end_with_parent() -> None:
    """End this process when its parent ends. Without it, the processes of a killed parent wait for tasks forever."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    connection.wait([parent.sentinel])
    os._exit(1)


def _predict(job: Job, paths: list[str]) -> Part:
    if _Process.predictor is None:
        _Process.predictor = _opened(job)
    return _Process.predictor.predict(paths)


def _opened(job: Job) -> FilePredictor:
    """Raises ModelRefused."""
    classifier = _open(job.settings, _Process.device)
    if classifier.digest != job.digest:
        raise ModelRefused(f"{job.settings.file}: has become another file meanwhile")
    return FilePredictor(classifier, job.root, job.settings)
