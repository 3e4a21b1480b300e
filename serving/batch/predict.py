"""Predict every image of a folder or of a manifest, without HTTP, and write one table.

Decoding, model and predictions are those of the service. Workers predict one chunk of paths at a time each. Paths are
read and rows are written one chunk after the other, so memory does not grow with their number. The same command resumes
a run that was stopped or killed.
"""

import hashlib
import json
import os
import sys
import time
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np

from serving.batch.parts import UNREADABLE, Part, PartFiles, encode
from serving.batch.shards import Shard, SharedTable
from serving.batch.sources import image_paths
from serving.batch.workers import Pool, Workers
from serving.contract.card.model_card import ModelCard
from serving.contract.decode import Pixels
from serving.contract.formats.image_header import ImageError
from serving.contract.model import Classifier
from serving.inference.padding import padded
from serving.inference.prediction import DECIMALS, Prediction, describe_batch
from serving.settings import Settings

CHUNK = 64
"""Images in a task. A worker holds the pixels of one task."""


def table_columns(card: ModelCard) -> list[str]:
    """The columns of the table. A row with an `error` has a path and no other value."""
    familiarity = [] if card.familiarity is None else ["unfamiliar", "novelty"]
    decisions = [f"decision_{point.label}" for point in card.operating_points]
    probabilities = [f"p_{name}" for name in card.classes]
    least_cost = ["least_cost"] if card.costs else []
    fixed = ["path", "label", "confidence", "prediction_set", "model_version", "error"]
    return [*fixed, *least_cost, *familiarity, *decisions, *probabilities]


class FilePredictor:
    """Reads image files below a folder and predicts them."""

    def __init__(self, classifier: Classifier, root: Path, settings: Settings) -> None:
        self._classifier = classifier
        self._root = root
        self._settings = settings

    def predict(self, paths: Sequence[str]) -> Part:
        """The rows of these files, in their order. An image that cannot be decoded gets a row with the reason.

        Raises InvalidOutput if the model gives a value that is not a finite number.
        """
        images = [self._read(path) for path in paths]
        predictions = self._predict([image for image in images if not isinstance(image, ImageError)])
        rows, failed = [], Counter[str]()
        for path, image in zip(paths, images, strict=True):
            if isinstance(image, ImageError):
                failed[image.code] += 1
                rows.append(self._error_row(path, image))
            else:
                rows.append(self._row(path, next(predictions)))
        return Part(rows=encode(rows), images=len(rows), failed=failed)

    def _read(self, path: str) -> Pixels | ImageError:
        settings = self._settings
        try:
            with open(os.path.join(self._root, path), "rb") as file:  # noqa: PTH118, PTH123 (half the time of a Path's)
                # `read` allocates all that it is asked for: for the largest file, as long as decoding a small one.
                data = file.read(min(os.fstat(file.fileno()).st_size, settings.max_bytes) + 1)
            preprocessing = self._classifier.card.preprocessing
            return preprocessing(data, max_bytes=settings.max_bytes, max_pixels=settings.max_pixels)
        except ImageError as error:
            return error
        except (OSError, ValueError) as error:  # ValueError: a path in a manifest may hold a NUL character
            return ImageError(UNREADABLE, getattr(error, "strerror", None) or str(error))

    def _predict(self, images: Sequence[Pixels]) -> Iterator[Prediction]:
        size = self._classifier.card.images_at_once(self._settings.max_batch)
        for start in range(0, len(images), size):
            batch = np.stack(images[start : start + size])
            answers = self._classifier.answers(padded(batch, size) if self._classifier.on_gpu else batch)
            yield from describe_batch(answers.first(len(batch)), self._classifier.card)

    def _row(self, path: str, prediction: Prediction) -> list[str]:
        card = self._classifier.card
        classes = prediction.prediction_set
        prediction_set = "" if classes is None else json.dumps(classes, ensure_ascii=False)
        probabilities = [f"{prediction.probabilities[name]:.{DECIMALS}f}" for name in card.classes]
        confidence = f"{prediction.confidence:.{DECIMALS}f}"
        decisions = [str(decision).lower() for decision in (prediction.decisions or {}).values()]
        least_cost = [] if prediction.least_cost is None else [prediction.least_cost]
        familiarity: list[str] = []
        if prediction.novelty is not None:
            familiarity = [str(prediction.unfamiliar).lower(), f"{prediction.novelty:.{DECIMALS}f}"]
        fixed = [path, prediction.label, confidence, prediction_set, card.version, ""]
        return [*fixed, *least_cost, *familiarity, *decisions, *probabilities]

    def _error_row(self, path: str, error: ImageError) -> list[str]:
        cells = [path, "", "", "", "", f"{error.code}: {error}"]
        return [*cells, *[""] * (len(table_columns(self._classifier.card)) - len(cells))]


@dataclass(frozen=True)
class Done:
    """What a call made: the failed images by error code, and the shards without which there is no table yet."""

    failed: Counter[str]
    missing: list[Shard]


def predict_images(source: Path, out: Path, settings: Settings, workers: Workers, shard: Shard) -> Done:
    """Make a row for each image of `source` that is of the shard; once all shards are complete, write them to `out`.

    Resumes an earlier call with the same source, output, model, limits and shard; what that could not read is tried
    again. Raises ManifestError, ModelRefused, InvalidOutput, Busy, OSError, and BrokenProcessPool if a worker was
    killed and its chunk cannot be done again.
    """
    classifier = workers.open_model(settings)
    root = source if source.is_dir() else source.parent
    # The name keeps rows of another model, of another source and by other limits out of the table.
    limits = f"{settings.max_bytes} {settings.max_pixels}"
    identity = hashlib.sha256(f"{classifier.digest} {source.resolve()} {limits}".encode()).hexdigest()[:12]
    table = SharedTable(out, table_columns(classifier.card), identity)
    skipped = Counter[str]()
    with PartFiles(table.folder(shard), table.columns) as parts:
        if parts.images:
            print(f"resuming after {parts.images:,} images", file=sys.stderr)
        failed = parts.failed
        shared = (path for path in image_paths(source, skipped) if shard.has(path))
        paths = (path for path in shared if not parts.is_done(path))
        progress = Progress()
        with workers.started(root, settings, classifier) as pool:
            for part in _in_order(pool, paths):
                parts.append(part)
                failed += part.failed
                progress.add(part)
        progress.end(skipped)
        if left_out := parts.complete():
            print(f"{left_out:,} rows of images that are no longer in {source} are left out", file=sys.stderr)
    if not (missing := table.missing(shard.count)):
        table.write(shard.count)
    return Done(failed, missing)


class Progress:
    """Prints the number of images and the rate to standard error: each second on a terminal, otherwise each minute."""

    def __init__(self) -> None:
        self._begun = self._printed = time.monotonic()
        self._interval_s = 1 if sys.stderr.isatty() else 60
        self._images = self._failed = 0

    def add(self, part: Part) -> None:
        """Count a part."""
        self._images += part.images
        self._failed += part.failed.total()
        if time.monotonic() - self._printed >= self._interval_s:
            self._printed = time.monotonic()
            print(self, file=sys.stderr, end="\r" if self._interval_s == 1 else "\n", flush=True)

    def end(self, skipped: Counter[str]) -> None:
        """Print the final numbers, and the extensions of the skipped files."""
        print(self, file=sys.stderr)
        if skipped:
            extensions = ", ".join(f"{count:,} {extension or 'without'}" for extension, count in skipped.most_common(5))
            print(f"skipped files without the extension of an image: {extensions}", file=sys.stderr)

    def __str__(self) -> str:
        rate = self._images / max(time.monotonic() - self._begun, 1e-9)
        return f"{self._images:,} images, {self._failed:,} failed, {rate:,.0f} images/s "


def _in_order(pool: Pool, paths: Iterable[str]) -> Iterator[Part]:
    """The parts of the paths, chunk after chunk in their order."""
    paths = iter(paths)
    running: deque[Future[Part]] = deque()
    while True:
        while len(running) < pool.limit() and (chunk := list(islice(paths, CHUNK))):
            running.append(pool.submit(chunk))
        if not running:
            return
        yield running.popleft().result()
