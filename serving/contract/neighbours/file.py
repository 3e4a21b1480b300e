"""The file of an index of training images: arrays in NumPy's .npz, beside the model whose card has its digest."""

import io
import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from serving.contract.decode import Digest
from serving.contract.neighbours.index import Metric, TrainingIndex


class NeighboursRefused(ValueError):
    """A file that is no index, or that of another model. The message names it."""


def to_bytes(index: TrainingIndex) -> bytes:
    """The content of the file: the same index makes the same bytes."""
    metric = index.metric
    texts = json.dumps({"classes": index.classes, "paths": index.paths}, ensure_ascii=False)
    content = io.BytesIO()
    np.savez(
        content,
        centre=metric.centre,
        directions=metric.directions,
        shrink=metric.shrink,
        scale=np.float64(metric.scale),
        points=index.points,
        labels=index.labels,
        pixels=index.pixels,
        places=index.places,
        rows=index.rows,
        texts=np.frombuffer(texts.encode("utf-8", "surrogateescape"), np.uint8),
    )
    return content.getvalue()


def from_bytes(content: bytes, path: Path) -> TrainingIndex:
    """Read what `to_bytes` has made; `path` is named where it is something else. Raises NeighboursRefused."""
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as file:
            arrays: dict[str, np.ndarray] = dict(file)
        texts: dict[str, Any] = json.loads(arrays["texts"].tobytes().decode("utf-8", "surrogateescape"))
        _check_shapes(arrays, len(texts["paths"]))
        index = _index(arrays, texts)
    except (OSError, EOFError, ValueError, KeyError, TypeError, zipfile.BadZipFile) as error:
        raise NeighboursRefused(f"{path}: no index of training images ({error})") from error
    if index.fault:
        raise NeighboursRefused(f"{path}: {index.fault}")
    return index


def read_index(path: Path, digest: Digest) -> TrainingIndex:
    """Read the index with this digest. Raises NeighboursRefused, OSError."""
    index = from_bytes(path.read_bytes(), path)
    if index.digest != digest:
        raise NeighboursRefused(
            f"{path}: is of another model: its digest is {index.digest[:12]}, the card says {digest[:12]}"
        )
    return index


def _check_shapes(arrays: dict[str, np.ndarray], count: int) -> None:
    """Raise ValueError where an array has another type or shape than the others ask for."""
    features, directions = arrays["centre"].size, arrays["shrink"].size
    expected: dict[str, tuple[str, tuple[int, ...]]] = {
        "centre": ("float32", (features,)),
        "directions": ("float32", (features, directions)),
        "shrink": ("float32", (directions,)),
        "points": ("float16", (count, features)),
        "labels": ("int32", (count,)),
        "pixels": ("uint8", (count, 32)),
        "places": ("int64", (count,)),
        "rows": ("uint8", (arrays["rows"].size // 32, 32)),
    }
    for name, (kind, shape) in expected.items():
        array = arrays[name]
        if (str(array.dtype), array.shape) != (kind, shape):
            raise ValueError(f"expected {name} of {kind} {list(shape)}, got {array.dtype} {list(array.shape)}")


def _index(arrays: dict[str, np.ndarray], texts: dict[str, Any]) -> TrainingIndex:
    metric = Metric(
        centre=arrays["centre"],
        directions=arrays["directions"],
        shrink=arrays["shrink"],
        scale=float(arrays["scale"]),
    )
    return TrainingIndex(
        metric=metric,
        classes=tuple(texts["classes"]),
        points=arrays["points"],
        labels=arrays["labels"],
        pixels=arrays["pixels"],
        paths=tuple(texts["paths"]),
        places=arrays["places"],
        rows=arrays["rows"],
    )
