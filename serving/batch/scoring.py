"""Offline scoring: every image of a folder or a manifest into one table.

The service's own decoding and model over any number of files, in one process a core, without HTTP. Paths are read as
they are needed and rows written as they come, so memory does not grow; stopped or killed, the same command goes on.
"""

import csv
import hashlib
import json
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass
from itertools import islice
from multiprocessing import connection
from pathlib import Path

import cv2
import numpy as np

from serving.batch.parts import Journal, encode
from serving.contract.card import ModelCard
from serving.contract.decode import Pixels
from serving.contract.image_header import IMAGE_EXTENSIONS, ImageError
from serving.contract.model import Classifier, open_model
from serving.settings import Settings

CHUNK = 64
"""Files a task: its pixels are what a process holds of them."""
CHUNKS_AHEAD = 3
"""Tasks a process has waiting, so that it never waits for one."""


class UsageError(ValueError):
    """Something that was asked for cannot be done; the message says what."""


@dataclass(frozen=True)
class Scored:
    """Rows of files that were tried, as CSV, and how many of them failed, by code."""

    rows: bytes
    files: int
    failed: Counter[str]


def columns(card: ModelCard) -> list[str]:
    """The header: a row a file, its probabilities last; where `error` says why, all but the path is empty."""
    probabilities = [f"p_{name}" for name in card.classes]
    return ["path", "label", "confidence", "prediction_set", "model_version", "error", *probabilities]


class Scorer:
    """Answers files as the service would."""

    def __init__(self, classifier: Classifier, root: Path, settings: Settings) -> None:
        self._classifier = classifier
        self._root = root
        self._settings = settings

    def score(self, keys: Sequence[str]) -> Scored:
        """The rows of these paths below the root, in their order."""
        read = [self._read(key) for key in keys]
        images = [pixels for pixels in read if isinstance(pixels, np.ndarray)]
        answers: list[np.ndarray] = []
        for start in range(0, len(images), self._settings.max_batch):
            answers += list(self._classifier.predict(np.stack(images[start : start + self._settings.max_batch])))
        rows: list[list[object]] = []
        failed, answer = Counter[str](), iter(answers)
        for key, outcome in zip(keys, read, strict=True):
            named = self._name(next(answer)) if isinstance(outcome, np.ndarray) else outcome
            if isinstance(named, ImageError):
                failed[named.code] += 1
                rows.append([key, "", "", "", "", f"{named.code}: {named}", *[""] * len(self._classifier.card.classes)])
            else:
                rows.append([key, *named])
        return Scored(encode(rows), len(rows), failed)

    def _read(self, key: str) -> Pixels | ImageError:
        settings = self._settings
        try:
            with open(os.path.join(self._root, key), "rb") as file:  # noqa: PTH118, PTH123 (half the time of a Path's)
                # Room is made for all that is asked for: for the largest file it costs as much as decoding a small one.
                data = file.read(min(os.fstat(file.fileno()).st_size, settings.max_bytes) + 1)
            preprocessing = self._classifier.card.preprocessing
            return preprocessing(data, max_bytes=settings.max_bytes, max_pixels=settings.max_pixels)
        except ImageError as error:
            return error
        except (OSError, ValueError) as error:  # ValueError: a manifest's path may hold a NUL
            return ImageError("unreadable_file", getattr(error, "strerror", None) or str(error))

    def _name(self, probabilities: np.ndarray) -> list[object] | ImageError:
        if not np.isfinite(probabilities).all():
            return ImageError("model_output_invalid", "the model gave a value that is not a number")
        card = self._classifier.card
        label, members = int(probabilities.argmax()), ""
        if card.calibration.threshold is not None:
            [inside] = card.calibration.prediction_sets(probabilities[np.newaxis])
            order = np.argsort(-probabilities, kind="stable")
            members = json.dumps([card.classes[i] for i in order if inside[i]], ensure_ascii=False)
        values = [f"{value:.6f}" for value in probabilities]
        return [card.classes[label], values[label], members, card.version, "", *values]


def find(source: Path, skipped: Counter[str]) -> Iterator[str]:
    """Paths of images, as they are found: those of a folder whose names end as images' do, or those of a manifest.

    A manifest is a CSV with a column `path`, or text with a path a line; its paths start from its own folder. Other
    files of a folder are counted in `skipped`; hidden ones and linked folders are left out. Raises UsageError.
    """
    if source.is_dir():
        yield from _in_folder(source, "", skipped)
    elif source.suffix.lower() == ".csv":
        with source.open(newline="", encoding="utf-8-sig", errors="surrogateescape") as file:
            lines = csv.DictReader(file)
            if "path" not in (lines.fieldnames or ()):
                raise UsageError(f"{source}: no column path; there are {', '.join(lines.fieldnames or ['none'])}")
            yield from (line["path"] for line in lines)
    else:
        with source.open(encoding="utf-8-sig", errors="surrogateescape") as file:
            yield from (line.rstrip("\n") for line in file if line.strip())


def _in_folder(root: Path, below: str, skipped: Counter[str]) -> Iterator[str]:
    with os.scandir(root / below) as entries:
        for entry in entries:
            key = f"{below}{entry.name}"
            if entry.name.startswith("."):
                continue
            if entry.is_dir(follow_symlinks=False):
                yield from _in_folder(root, f"{key}/", skipped)
            elif not entry.name.lower().endswith(IMAGE_EXTENSIONS):
                skipped[Path(entry.name).suffix] += 1
            elif entry.is_file() or entry.is_symlink():  # of a link that leads nowhere the table shall say so
                yield key


def score(source: Path, out: Path, settings: Settings, workers: int) -> Counter[str]:
    """Write a row for each image of `source` to `out`, and return how many failed, by code.

    Goes on with what an earlier call of the same source and model has left. Raises UsageError, ModelRefused, Busy,
    OSError, and BrokenProcessPool when a process has been killed.
    """
    classifier = open_model(settings.model, require_gpu=settings.require_gpu)
    root = source if source.is_dir() else source.parent
    # By name, so that rows of another model or of another folder never come into one table.
    identity = hashlib.sha256(f"{classifier.digest} {source.resolve()}".encode()).hexdigest()[:12]
    skipped = Counter[str]()
    with Journal(out.with_name(f".{out.name}.{identity}.partial"), columns(classifier.card)) as journal:
        if journal.rows:
            print(f"{journal.rows:,} images are done already; going on", file=sys.stderr)
        failed = journal.failed
        keys = (key for key in find(source, skipped) if not journal.is_done(key))
        progress = Progress()
        begin = (root, settings)
        context = multiprocessing.get_context("spawn")  # a fork would copy the threads' locks, and CUDA forbids it
        with ProcessPoolExecutor(workers, context, initializer=_begin, initargs=begin) as pool:
            try:
                for scored in _in_order(pool, keys, workers * CHUNKS_AHEAD):
                    journal.append(scored.rows)
                    failed += scored.failed
                    progress.add(scored)
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
        progress.end(skipped)
        journal.finish(out)
    return failed


class Progress:
    """What a person sees meanwhile, on standard error: every second on a terminal, else every minute."""

    def __init__(self) -> None:
        self._begun = self._shown = time.monotonic()
        self._every = 1 if sys.stderr.isatty() else 60
        self._files = self._failed = 0

    def add(self, scored: Scored) -> None:
        """Some more files have been tried."""
        self._files += scored.files
        self._failed += scored.failed.total()
        if time.monotonic() - self._shown >= self._every:
            self._shown = time.monotonic()
            print(self, file=sys.stderr, end="\r" if self._every == 1 else "\n", flush=True)

    def end(self, skipped: Counter[str]) -> None:
        """There are no more."""
        print(self, file=sys.stderr)
        if skipped:
            endings = ", ".join(f"{count:,} {ending or 'without'}" for ending, count in skipped.most_common(5))
            print(f"skipped, for their names do not end as images' do: {endings}", file=sys.stderr)

    def __str__(self) -> str:
        rate = self._files / max(time.monotonic() - self._begun, 1e-9)
        return f"{self._files:,} images, {self._failed:,} failed, {rate:,.0f} images/s "


def _in_order(pool: ProcessPoolExecutor, keys: Iterable[str], ahead: int) -> Iterator[Scored]:
    """What becomes of the keys, chunk by chunk in their order; no more than `ahead` chunks are under way."""
    keys = iter(keys)
    running: deque[Future[Scored]] = deque()
    while True:
        while len(running) < ahead and (chunk := list(islice(keys, CHUNK))):
            running.append(pool.submit(_score, chunk))
        if not running:
            return
        yield running.popleft().result()


class _Process:
    """What a process of the pool works with."""

    scorer: Scorer


def _begin(root: Path, settings: Settings) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides
    threading.Thread(target=_end_with_parent, daemon=True).start()
    cv2.setNumThreads(1)
    _Process.scorer = Scorer(open_model(settings.model, require_gpu=settings.require_gpu), root, settings)


def _end_with_parent() -> None:
    """A parent that is killed tells nobody, and its children would wait for work for ever."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    connection.wait([parent.sentinel])
    os._exit(1)


def _score(keys: list[str]) -> Scored:
    return _Process.scorer.score(keys)
