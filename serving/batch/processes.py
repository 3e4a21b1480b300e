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
from pathlib import Path

import cv2

from serving.batch.parts import Part
from serving.batch.predict import FilePredictor
from serving.batch.workers import CHUNKS_PER_WORKER, Pool
from serving.contract.decode import Digest
from serving.contract.model import Classifier, ModelRefused, open_model
from serving.settings import Settings


@dataclass(frozen=True)
class Processes:
    """A pool of this number of processes. When one is killed, all end, and the same command resumes."""

    number: int

    def open_model(self, settings: Settings) -> Classifier:
        """Raises ModelRefused."""
        return _open(settings)

    @contextmanager
    def started(self, root: Path, settings: Settings, digest: Digest) -> Iterator[Pool]:
        """See Workers."""
        context = multiprocessing.get_context("spawn")  # a fork copies the locks of threads, and CUDA forbids it
        with ProcessPoolExecutor(self.number, context, initializer=_begin) as pool:
            try:
                job = Job(root, settings, digest)
                yield Pool(lambda paths: pool.submit(_predict, job, paths), lambda: self.number * CHUNKS_PER_WORKER)
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise


def _open(settings: Settings) -> Classifier:
    """Raises ModelRefused."""
    return open_model(settings.file, placement=settings.placement(), key=settings.public_key)


@dataclass(frozen=True)
class Job:
    """What a process needs to begin."""

    root: Path
    settings: Settings
    digest: Digest


class _Process:
    """The state of a process of the pool."""

    predictor: FilePredictor | None = None


def _begin() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent process ends the others
    threading.Thread(target=_end_with_parent, daemon=True).start()
    cv2.setNumThreads(1)


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
    classifier = _open(job.settings)
    if classifier.digest != job.digest:
        raise ModelRefused(f"{job.settings.file}: has become another file meanwhile")
    return FilePredictor(classifier, job.root, job.settings)
