"""Find files that show the same picture: copied, re-encoded, resized, slightly cropped, mirrored or rotated.

The candidates are the nearest neighbours of each image by the low frequencies of its cosine transform, in a form that
does not change with a quarter turn or a mirror. Of more than 100,000 images they are found in clusters (faiss), not
among all. The two images of a candidate pair are aligned, whole and with one as a crop of the other, and their textures
are compared. Texture is brightness without its local mean and contrast. It differs between two pictures of similar
things; it does not differ between two copies of one picture.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import cv2
import joblib
import numpy as np
from jaxtyping import Bool, Float32, Int8, Int64
from sklearn.neighbors import NearestNeighbors
from threadpoolctl import threadpool_limits

from serving.contract.decode import Decoded, as_channels, fit
from training.data import overlay
from training.data.overlay import SIDE
from training.storage import release

SPECTRUM_SIDE = 32
TEXTURE_PX = 3.0
"""Texture is detail finer than this standard deviation, in pixels of a 64 px image."""
NOISE_LEVEL = 2.0
"""Texture of less contrast, in gray levels, counts as noise."""
TEXTURE_STEPS = 32
"""Steps of a stored texture for each unit. The values of a texture have a standard deviation of about 1."""
FREQUENCIES = 10
NEIGHBOURS = 5
EXACT_AT_MOST = 100_000
"""With more images, neighbours are searched in a graph: among all of a million that would take hours."""
LINKS = 16
"""Of an image in the graph, on each level above the lowest."""
BREADTH = 64
"""Images that a search in the graph keeps. Of 50,292 parts of photographs it finds 98 % of the nearest ones."""
LOOK_ALIKE_RANK = 20
LOOK_ALIKES = 500
LEAST_SIMILARITY = 0.75
LOOK_ALIKE_SHARE = 1 / 3
TURNS = ("", "mirrored", "flipped", "turned by 180", "transposed", "turned by 90", "turned by 270", "transversed")
CHUNK = 512
"""Pairs that a thread compares at once, in 40 MB. With fewer, the threads wait longer for the interpreter's lock."""
PART = 10_000
"""Images whose spectra are read at once: 44 MiB of a mapped file."""
FINGERPRINT = np.dtype([("texture", np.int8, (SIDE, SIDE)), ("spectrum", np.float32, (FREQUENCIES, FREQUENCIES))])
"""Texture of an image, and the low frequencies of its cosine transform, scaled to length 1."""

Texture = Int8[np.ndarray, "64 64"]
Features = Float32[np.ndarray, "images 100"]
Indices = Int64[np.ndarray, " images"]
Pairs = Int64[np.ndarray, "pairs 2"]


@dataclass(frozen=True, kw_only=True)
class Pair:
    """Two images, by index, that show one picture.

    `change` is the detected difference, such as a mirror or a crop. `similarity` is the correlation of the textures, 1
    for equal pixels.
    """

    first: int
    second: int
    kind: Literal["exact", "near"]
    change: str
    similarity: float


@dataclass(frozen=True, kw_only=True)
class Duplicates:
    """All detected pairs, and the similarity that this data requires of a near-duplicate."""

    pairs: tuple[Pair, ...]
    least_similarity: float

    @property
    def links(self) -> Pairs:
        """The pairs as indices `[pairs, 2]`."""
        return np.array([(pair.first, pair.second) for pair in self.pairs], np.int64).reshape(-1, 2)


def fingerprint(pixels: Decoded) -> np.ndarray:
    """Return the fingerprint of one decoded image, RGB or gray: a scalar array of FINGERPRINT."""
    gray = as_channels(fit(pixels, SIDE, SIDE, "area"), 1)[:, :, 0].astype(np.float32)
    detail = gray - _blurred(gray, TEXTURE_PX)
    texture = detail / (np.sqrt(_blurred(detail * detail, 2 * TEXTURE_PX)) + NOISE_LEVEL)
    small = cv2.resize(gray, (SPECTRUM_SIDE, SPECTRUM_SIDE), interpolation=cv2.INTER_AREA)
    spectrum = cv2.dct(small)[:FREQUENCIES, :FREQUENCIES] * _WEIGHTS
    steps = np.clip(np.round(texture * TEXTURE_STEPS), -127, 127)
    return np.array((steps, spectrum / max(float(np.linalg.norm(spectrum)), 1e-6)), FINGERPRINT)


def find(fingerprints: np.ndarray, digests: Sequence[str]) -> Duplicates:
    """Return exact duplicates (equal digests), each paired with the next, and near-duplicates among the others.

    `fingerprints` is an array of FINGERPRINT, which may be mapped from a file. A near-duplicate differs at most a third
    as much as the most similar 1 % of look-alikes do (an image and its 20th neighbour). So small pictures of simple
    things are not taken for copies. Where most images have more than twenty similar ones, as in a film, the limit is
    too strict: they need a group.
    """
    images, exact = _exact(np.array(digests, np.bytes_))
    if len(images) < 2:
        return Duplicates(pairs=tuple(exact), least_similarity=LEAST_SIMILARITY)
    features = _features(fingerprints, images)
    least = _least_similarity(fingerprints, images, features)
    near = _near(fingerprints, images[_candidates(features)], least)
    return Duplicates(pairs=(*exact, *near), least_similarity=least)


def _exact(digests: np.ndarray) -> tuple[Indices, list[Pair]]:
    """The first image of each digest, and each other one paired with the one of the same digest before it."""
    order = np.argsort(digests, kind="stable")
    equals_next = digests[order[1:]] == digests[order[:-1]]
    pairs = np.stack([order[:-1], order[1:]], axis=1)[equals_next]
    exact = [
        Pair(first=first, second=second, kind="exact", change="", similarity=1.0)
        for first, second in pairs[np.argsort(pairs[:, 0])].tolist()
    ]
    return np.sort(np.delete(order, np.flatnonzero(equals_next) + 1)), exact


def required_similarity(fingerprints: np.ndarray) -> float:
    """The similarity that `find` requires of a near-duplicate among these, an array of FINGERPRINT."""
    if len(fingerprints) < 2:
        return LEAST_SIMILARITY
    images = np.arange(len(fingerprints))
    return _least_similarity(fingerprints, images, _features(fingerprints, images))


def copies(pictures: np.ndarray, among: np.ndarray, least_similarity: float) -> list[Pair]:
    """Return for each of `pictures` (`first`) those `among` others (`second`) that show it, by the similarity given.

    Both are arrays of FINGERPRINT; equal ones among the others should be one. As many of the nearest are compared as
    `find` calls look-alikes.
    """
    if not len(pictures) or not len(among):
        return []
    count = min(LOOK_ALIKE_RANK, len(among))
    search = NearestNeighbors(n_neighbors=count, algorithm="brute").fit(_invariants(among["spectrum"]))
    nearest = search.kneighbors(_invariants(pictures["spectrum"]), return_distance=False) + len(pictures)
    both = np.concatenate([pictures, among])
    candidates = np.stack([np.repeat(np.arange(len(pictures)), count), nearest.ravel()], axis=1)
    return [replace(pair, second=pair.second - len(pictures)) for pair in _near(both, candidates, least_similarity)]


def _candidates(features: Features) -> Pairs:
    """Each image with its nearest. Of more than 100,000 images a few of the nearest may be missing."""
    count = min(NEIGHBOURS, len(features) - 1)
    if len(features) > EXACT_AT_MOST:
        pairs = _near_in_graph(features, count)
    else:
        search = NearestNeighbors(n_neighbors=count, algorithm="brute").fit(features)
        pairs = _paired(np.arange(len(features)), search.kneighbors(return_distance=False))
    return np.unique(np.sort(pairs[pairs[:, 0] != pairs[:, 1]], axis=1), axis=0)


def _paired(images: Indices, nearest: Int64[np.ndarray, "images nearest"]) -> Pairs:
    return np.stack([np.repeat(images, nearest.shape[1]), nearest.ravel()], axis=1)


def _near_in_graph(features: Features, count: int) -> Pairs:
    """Each image with its nearest, of which one may be the image itself.

    The graph is that of Malkov and Yashunin, Efficient and robust approximate nearest neighbor search using
    hierarchical navigable small world graphs, 2018.
    """
    import faiss  # noqa: PLC0415  a native library, which is needed for many images only

    # Equal features, as of blank images, would be linked to one another alone, and searches would end among them.
    rows = np.fromiter((hash(row.tobytes()) for row in features), np.int64, len(features))
    _, first, group = np.unique(rows, return_index=True, return_inverse=True)
    by_group = np.argsort(group, kind="stable")
    equal = np.stack([by_group[:-1], by_group[1:]], axis=1)[np.diff(group[by_group]) == 0]
    different = np.sort(first)
    if len(different) < len(features):
        features = features[different]
    half = faiss.ScalarQuantizer.QT_fp16  # 200 MB for a million images, and 150 MB for the links
    index = faiss.IndexHNSWSQ(features.shape[1], half, LINKS)  # type: ignore[arg-type]  # as its documentation has it
    index.hnsw.efSearch = BREADTH
    # Its threads are those of PyTorch, of which a run has its own number. By several, the graph, and so the splits,
    # would depend on their order.
    with threadpool_limits(1, user_api="openmp"):
        index.train(features)
        index.add(features)
    with threadpool_limits(joblib.cpu_count(), user_api="openmp"):
        _, nearest = index.search(features, count + 1)
    pairs = _paired(np.arange(len(features)), nearest)
    return np.concatenate([equal, different[pairs[pairs[:, 1] >= 0]]])


def _features(fingerprints: np.ndarray, images: Indices) -> Features:
    """The invariants of these images."""
    parts = []
    for start in range(0, len(images), PART):
        parts.append(_invariants(fingerprints["spectrum"][images[start : start + PART]]))
        release(fingerprints)
    return np.concatenate(parts)


def _invariants(spectra: Float32[np.ndarray, "images 10 10"]) -> Features:
    """Values `[images, 100]` that are the same in any orientation.

    A mirror changes signs of the cosine transform, and a quarter turn transposes it. Neither changes the sum of the
    magnitudes at (u, v) and (v, u), nor the magnitude of their difference.
    """
    magnitudes = np.abs(spectra)
    above, left = np.triu_indices(FREQUENCIES, 1)
    upper, lower = magnitudes[:, above, left], magnitudes[:, left, above]
    diagonal = np.diagonal(magnitudes, axis1=1, axis2=2)
    together = np.concatenate([upper + lower, np.abs(upper - lower)], axis=1) / np.sqrt(np.float32(2))
    return np.concatenate([diagonal, together], axis=1)


def _least_similarity(fingerprints: np.ndarray, images: Indices, features: Features) -> float:
    """The similarity required of a near-duplicate, from the similarity of different pictures in this data."""
    if len(images) <= LOOK_ALIKE_RANK:
        return LEAST_SIMILARITY
    sample = np.random.default_rng(0).permutation(len(images))[:LOOK_ALIKES]
    search = NearestNeighbors(n_neighbors=LOOK_ALIKE_RANK + 1, algorithm="brute").fit(features)
    nearest = search.kneighbors(features[sample], return_distance=False)  # an image itself is nearest, or as near
    look_alikes = np.where(nearest[:, -1] == sample, nearest[:, 0], nearest[:, -1])
    compared = _compare(fingerprints, np.stack([images[sample], images[look_alikes]], axis=1), 0)
    return max(LEAST_SIMILARITY, 1 - (1 - float(np.quantile(compared.similarity, 0.99))) * LOOK_ALIKE_SHARE)


def _near(fingerprints: np.ndarray, candidates: Pairs, least: float) -> list[Pair]:
    """Those of the candidates that are at least so similar."""
    compared = _compare(fingerprints, candidates, least)
    near = []
    for row in np.flatnonzero(compared.similarity >= least):
        change = (TURNS[compared.turns[row]], "cropped" if compared.cropped[row] else "")
        first, second = candidates[row].tolist()
        near.append(
            Pair(
                first=first,
                second=second,
                kind="near",
                change=" and ".join(filter(None, change)),
                similarity=float(compared.similarity[row]),
            )
        )
    return near


class ComparedPairs(NamedTuple):
    """What makes the second picture of each pair most similar to the first, and that similarity."""

    turns: Int64[np.ndarray, " pairs"]
    """As in TURNS."""
    similarity: Float32[np.ndarray, " pairs"]
    cropped: Bool[np.ndarray, " pairs"]


def _compare(fingerprints: np.ndarray, pairs: Pairs, least: float) -> ComparedPairs:
    """Compare each pair. A similarity below `least` may be too small."""

    def compare(part: Pairs) -> ComparedPairs:
        first, second = fingerprints[part[:, 0]], fingerprints[part[:, 1]]
        release(fingerprints)
        turns = _best_turns(first["spectrum"], second["spectrum"])
        views = zip(second["texture"], turns.tolist(), strict=True)
        turned = np.stack([_turned(texture, turn) for texture, turn in views])
        return ComparedPairs(turns, *overlay.compare(first["texture"], turned, least))

    parts = [pairs[start : start + CHUNK] for start in range(0, len(pairs), CHUNK)]
    # NumPy and OpenCV release the interpreter's lock. BLAS must not start threads of its own in each thread.
    with threadpool_limits(1, user_api="blas"), ThreadPoolExecutor(joblib.cpu_count()) as pool:
        return ComparedPairs(*map(np.concatenate, zip(*pool.map(compare, parts), strict=True)))


def _turned(texture: Texture, turn: int) -> Texture:
    """View `turn` of the eight: transposed (4) or not, then mirrored (1) and flipped (2)."""
    view = texture.T if turn & 4 else texture
    return np.ascontiguousarray(view[:: -1 if turn & 2 else 1, :: -1 if turn & 1 else 1])


def _best_turns(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """For each row of spectra, the view of the second that correlates best with the first.

    A mirror negates the odd columns of a cosine transform, and a flip its odd rows. The views with a quarter turn are
    those of the transposed transform.
    """
    odd = np.arange(FREQUENCIES) % 2
    views = []
    for other in (second, second.transpose(0, 2, 1)):
        product = first * other
        for rows, columns in ((1, 1), (1, -1), (-1, 1), (-1, -1)):
            signs = np.where(odd, rows, 1)[:, None] * np.where(odd, columns, 1)[None, :]
            views.append((product * signs.astype(np.float32)).sum((1, 2)))
    best: np.ndarray = np.argmax(views, axis=0)
    return best


def _blurred(values: np.ndarray, deviation: float) -> np.ndarray:
    return cv2.GaussianBlur(values, (0, 0), deviation, borderType=cv2.BORDER_REFLECT)


_VERTICAL, _HORIZONTAL = np.mgrid[:FREQUENCIES, :FREQUENCIES]
_WEIGHTS = ((_VERTICAL**2 + _HORIZONTAL**2) ** 0.25).astype(np.float32)
