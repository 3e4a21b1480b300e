"""The training images that are nearest to an image, by the distance that novelty measures. Nothing here knows HTTP."""

import asyncio
import base64
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

import cv2

from serving.contract.decode import Decoded, Digest, checked_header, decode_checked, identifying_values, pixel_digest
from serving.contract.formats.image_header import ImageError
from serving.contract.model import Answer
from serving.contract.neighbours.index import Neighbour, TrainingIndex
from serving.inference.batching import Overloaded
from serving.inference.prediction import DECIMALS
from serving.inference.predictor import Predictor
from serving.metrics import Metrics
from serving.settings import Settings

MOST_ROWS = 500_000
"""In searches under way: with 1,280 features 1.4 s of a core."""
PICTURE_PX = 96
"""Longer side of a picture."""


class NoTrainingImages(LookupError):
    """The model has no index of training images beside it; the message says why."""


@dataclass(frozen=True, kw_only=True)
class Similar:
    """The nearest training images of an image, the nearest first, beside its own novelty."""

    neighbours: list[Neighbour]
    pictures: list[str | None]
    """Data URIs; None where there is no file of these pixels. Empty where pictures are not shown."""
    novelty: float
    unfamiliar: bool
    model_version: str

    @property
    def body(self) -> dict[str, object]:
        """As the service answers it."""
        entries: list[dict[str, object]] = [
            {"path": _utf8(one.path), "label": one.label, "distance": round(one.distance, DECIMALS)}
            for one in self.neighbours
        ]
        for entry, picture in zip(entries, self.pictures, strict=False):
            entry["picture"] = picture
        novelty = round(self.novelty, DECIMALS)
        facts = {"unfamiliar": self.unfamiliar, "novelty": novelty, "model_version": self.model_version}
        return {"similar": entries, **facts}


def _utf8(path: str) -> str:
    """A path whose bytes are of another encoding cannot be sent as they are."""
    return path.encode("utf-8", "replace").decode()


class Searcher:
    """Searches one index at a time, in a thread of its own, so that predictions wait for no search."""

    def __init__(self, settings: Settings, metrics: Metrics) -> None:
        self._settings = settings
        self._metrics = metrics
        self._rows = 0
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="search")

    async def search(self, predictor: Predictor, data: bytes, count: int) -> Similar:
        """The `count` nearest training images of an encoded image.

        Raises NoTrainingImages, Overloaded while searches of MOST_ROWS are under way, ImageError, InvalidOutput.
        """
        rows = len(training_images(predictor).paths)
        if self._rows and self._rows + rows > MOST_ROWS:
            raise Overloaded(f"{self._rows:,} rows are searched already")
        self._rows += rows
        deadline = perf_counter() + self._settings.timeout_s
        try:
            answer = await predictor.embed(data)
            loop = asyncio.get_running_loop()
            return await loop.run_in_executor(self._thread, self._nearest, predictor, answer, count, deadline)
        finally:
            self._rows -= rows

    def _nearest(self, predictor: Predictor, answer: Answer, count: int, deadline: float) -> Similar:
        start = perf_counter()
        index, familiarity = predictor.classifier.index, predictor.card.familiarity
        assert index is not None
        assert familiarity is not None
        assert answer.embedding is not None
        assert answer.novelty is not None
        neighbours = index.nearest(answer.embedding, count)
        self._metrics.inference.searched(perf_counter() - start)
        shown = neighbours if self._settings.show_training else []
        return Similar(
            neighbours=neighbours,
            # After the deadline no client waits, and 50 large images take many seconds of the one thread.
            pictures=[self._picture(one) if perf_counter() < deadline else None for one in shown],
            novelty=answer.novelty,
            unfamiliar=familiarity.unfamiliar(answer.novelty),
            model_version=predictor.card.version,
        )

    def _picture(self, neighbour: Neighbour) -> str | None:
        assert self._settings.training_data is not None
        return picture(self._settings.training_data, neighbour, self._settings)


def training_images(predictor: Predictor) -> TrainingIndex:
    """The index of training images beside the predictor's model. Raises NoTrainingImages."""
    if predictor.card.neighbours is None:
        raise NoTrainingImages("this model has no training images to compare with; `--unfamiliar` makes them")
    if predictor.classifier.index is None:
        raise NoTrainingImages(
            "no training images are shown: their file is not beside this model, or TWINLENS_SIMILAR=0"
        )
    return predictor.classifier.index


def picture(root: Path, neighbour: Neighbour, settings: Settings) -> str | None:
    """A small JPEG as a data URI; None unless there is a file below `root` with the pixels of the training."""
    path = Path(root, neighbour.path)
    try:
        if not path.resolve().is_relative_to(root.resolve()):
            return None
        with path.open("rb") as file:
            data = file.read(settings.max_bytes + 1)
        pixels, digest = _decoded(data, settings)
    except (ImageError, OSError, ValueError):  # ValueError: a NUL character in a path
        return None
    return _as_data_uri(pixels) if digest == neighbour.pixels else None


def _decoded(data: bytes, settings: Settings) -> tuple[Decoded, Digest]:
    """RGB pixels, and the digest that the training has of their content."""
    header = checked_header(data, max_bytes=settings.max_bytes, max_pixels=settings.max_pixels)
    pixels = decode_checked(data, header)
    return pixels, pixel_digest(identifying_values(data, header, pixels))


def _as_data_uri(pixels: Decoded) -> str:
    height, width = pixels.shape[:2]
    scale = min(1.0, PICTURE_PX / max(height, width))
    size = max(1, round(width * scale)), max(1, round(height * scale))
    small = cv2.cvtColor(cv2.resize(pixels, size, interpolation=cv2.INTER_AREA), cv2.COLOR_RGB2BGR)
    done, encoded = cv2.imencode(".jpg", small, [cv2.IMWRITE_JPEG_QUALITY, 85])
    assert done
    return f"data:image/jpeg;base64,{base64.b64encode(encoded.tobytes()).decode()}"
