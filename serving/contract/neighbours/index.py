"""The training images as the model sees them: their embeddings, paths and labels, and which of them are nearest.

The trainer makes an index, the service searches it. The card of the model holds its digest, which stays the same when
rows are removed: of a removed row only its SHA-256 is left.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from jaxtyping import Bool, Float, Float16, Float32, Int32, Int64, UInt8

from serving.contract.decode import Digest

ROWS_AT_ONCE = 256
"""Rows that are compared at a time: as float32, those of 1,280 features take 1.3 MB, which a cache holds."""


@dataclass(frozen=True, kw_only=True)
class Metric:
    """The distance that novelty measures, between two images instead of an image and a class mean.

    It is `scale` times the Euclidean distance of two points. The point of an embedding of length 1 is
    `v + ((v @ directions) * shrink) @ directions.T` with v, the embedding less `centre`; so the square is
    `(u - w)' P (u - w)` with the precision P of novelty (Lee et al. 2018, https://arxiv.org/abs/1807.03888).
    """

    centre: Float32[np.ndarray, " features"]
    directions: Float32[np.ndarray, "features directions"]
    """Directions of largest variance within classes, each of length 1."""
    shrink: Float32[np.ndarray, " directions"]
    """From -1 to 0: less than what a direction of mean variance counts."""
    scale: float

    def points(self, embeddings: Float[np.ndarray, "images features"]) -> Float32[np.ndarray, "images features"]:
        """The points of embeddings of length 1."""
        centred = embeddings.astype(np.float64) - self.centre
        points: np.ndarray = centred + ((centred @ self.directions) * self.shrink) @ self.directions.T
        return points.astype(np.float32)


@dataclass(frozen=True, kw_only=True)
class Neighbour:
    """A training image and its distance from an image that was asked about."""

    path: str
    """As the data named it, relative to the data."""
    label: str
    distance: float
    pixels: Digest
    """SHA-256 of its decoded pixels."""


@dataclass(frozen=True, kw_only=True)
class TrainingIndex:
    """Training images, a row for each that was not removed."""

    metric: Metric
    classes: tuple[str, ...]
    points: Float16[np.ndarray, "rows features"]
    labels: Int32[np.ndarray, " rows"]
    """Index in `classes`."""
    pixels: UInt8[np.ndarray, "rows 32"]
    """SHA-256 of the decoded pixels."""
    paths: tuple[str, ...]
    places: Int64[np.ndarray, " rows"]
    """Where each row is among all that there were at first."""
    rows: UInt8[np.ndarray, "all 32"]
    """SHA-256 of each row that there was at first."""

    @classmethod
    def of(
        cls,
        metric: Metric,
        classes: tuple[str, ...],
        points: Float16[np.ndarray, "rows features"],
        labels: Int32[np.ndarray, " rows"],
        images: list[tuple[str, Digest]],
    ) -> "TrainingIndex":
        """The index of images, each with its path and the digest of its pixels."""
        digests = [bytes.fromhex(digest) for _, digest in images]
        index = cls(
            metric=metric,
            classes=classes,
            points=points,
            labels=labels,
            pixels=np.frombuffer(b"".join(digests), np.uint8).reshape(-1, 32),
            paths=tuple(path for path, _ in images),
            places=np.arange(len(images)),
            rows=np.empty((0, 32), np.uint8),
        )
        return replace(index, rows=np.frombuffer(b"".join(index._digests()), np.uint8).reshape(-1, 32))

    @cached_property
    def digest(self) -> Digest:
        """What the card of the model holds: SHA-256 of the metric, the classes and the digests of all rows."""
        sizes = self.metric.directions.shape, len(self.rows)
        total = hashlib.sha256(repr((self.classes, sizes, self.metric.scale)).encode())
        for part in (self.metric.centre, self.metric.directions, self.metric.shrink, self.rows):
            total.update(np.ascontiguousarray(part).tobytes())
        return Digest(total.hexdigest())

    @property
    def fault(self) -> str | None:
        """Why a row is not what its digest is of, as a part of a sentence; None where all are."""
        places, labels = self.places, self.labels
        if len(places) and (places[0] < 0 or places[-1] >= len(self.rows) or (np.diff(places) < 1).any()):
            return "its rows are in no order"
        if len(labels) and (labels.min() < 0 or labels.max() >= len(self.classes)):
            return "a label is none of its classes"
        if b"".join(self._digests()) != self.rows[places].tobytes():
            return "a row was changed"
        return None

    @property
    def state(self) -> Digest:
        """Differs when the rows do: `digest`, and which of them are left."""
        return Digest(hashlib.sha256(self.digest.encode() + self.places.tobytes()).hexdigest())

    def without(self, removed: Bool[np.ndarray, " rows"]) -> "TrainingIndex":
        """The index without these rows; its digest is the same."""
        kept = np.flatnonzero(~removed)
        return replace(
            self,
            points=self.points[kept],
            labels=self.labels[kept],
            pixels=self.pixels[kept],
            paths=tuple(self.paths[row] for row in kept),
            places=self.places[kept],
        )

    def nearest(self, embedding: Float32[np.ndarray, " features"], count: int) -> list[Neighbour]:
        """The `count` nearest rows to an embedding of length 1, the nearest first; fewer where there are fewer."""
        distances = self.distances(embedding)
        count = min(count, len(distances))
        rows = np.argpartition(distances, count - 1)[:count] if count else np.arange(0)
        rows = rows[np.lexsort((rows, distances[rows]))]
        return [
            Neighbour(
                path=self.paths[row],
                label=self.classes[self.labels[row]],
                distance=float(distances[row]),
                pixels=Digest(self.pixels[row].tobytes().hex()),
            )
            for row in rows.tolist()
        ]

    def distances(self, embedding: Float32[np.ndarray, " features"]) -> Float32[np.ndarray, " rows"]:
        """The distance of each row from an embedding of length 1."""
        [point] = self.metric.points(embedding[np.newaxis])
        squares = np.empty(len(self.points), np.float32)
        for start in range(0, len(squares), ROWS_AT_ONCE):
            block = self.points[start : start + ROWS_AT_ONCE].astype(np.float32)
            block -= point
            np.einsum("ij,ij->i", block, block, out=squares[start : start + ROWS_AT_ONCE])
        distances: np.ndarray = np.sqrt(squares) * np.float32(self.metric.scale)
        return distances

    def _digests(self) -> Iterator[bytes]:
        """The SHA-256 of each row."""
        for point, label, pixels, path in zip(self.points, self.labels.tolist(), self.pixels, self.paths, strict=True):
            row = hashlib.sha256(point.tobytes())
            row.update(pixels.tobytes() + label.to_bytes(4, "little") + path.encode("utf-8", "surrogateescape"))
            yield row.digest()
