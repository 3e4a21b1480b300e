"""The index of training images on its own: distances, removed rows, and files that are something else."""

import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from serving.contract.decode import Digest
from serving.contract.files.names import neighbours_of
from serving.contract.neighbours.file import NeighboursRefused, from_bytes, read_index, to_bytes
from serving.contract.neighbours.index import TrainingIndex
from training.metrics.familiarity import novelty
from training.metrics.familiarity.training_index import metric as metric_of

CLASSES = ("a", "b", "c")


def made(rows: int = 300, features: int = 100) -> tuple[TrainingIndex, np.ndarray]:
    """An index of random embeddings whose directions differ in variance, and these embeddings."""
    rng = np.random.default_rng(0)
    labels = np.arange(rows) % 3
    values = 5 + rng.normal(size=(rows, features)) * np.geomspace(2, 0.05, features) + 0.2 * labels[:, None]
    embeddings = novelty.unit(values.astype(np.float32))
    metric = metric_of(novelty.fit(embeddings.astype(np.float32), labels))
    images = [
        (f"{label}/é {row}.png", Digest(hashlib.sha256(str(row).encode()).hexdigest()))
        for row, label in enumerate(labels)
    ]
    points = metric.points(embeddings).astype(np.float16)
    return TrainingIndex.of(metric, CLASSES, points, labels.astype(np.int32), images), embeddings


@pytest.mark.parametrize("features", [40, 100], ids=["all directions", "64 directions"])
def test_the_distance_is_that_of_novelty(features: int) -> None:
    index, embeddings = made(features=features)
    labels = np.arange(300) % 3
    detector = novelty.fit(embeddings.astype(np.float32), labels)
    directions = detector.directions.astype(np.float64)
    precision = detector.scale * np.eye(features) - directions @ directions.T
    differences = embeddings[0] - embeddings
    expected = np.sqrt(np.einsum("ij,jk,ik->i", differences, precision, differences).clip(0))
    assert index.distances(embeddings[0].astype(np.float32)) == pytest.approx(expected, rel=5e-3, abs=5e-3)
    means = np.stack([embeddings[labels == label].mean(0) for label in range(3)])
    to_means = [np.sqrt((one - means) @ precision @ (one - means).T).diagonal().min() for one in embeddings[:5]]
    assert detector.novelty(embeddings[:5].astype(np.float32)) == pytest.approx(to_means, rel=1e-2)


def test_the_nearest_come_first_and_equal_ones_in_their_order() -> None:
    index, embeddings = made()
    twice = replace(index, points=np.concatenate([index.points[:150], index.points[:150]]))
    found = twice.nearest(embeddings[7].astype(np.float32), 4)
    assert [one.path.partition(" ")[2] for one in found[:2]] == ["7.png", "157.png"]
    assert [one.distance for one in found] == sorted(one.distance for one in found)
    assert found[0].label == CLASSES[7 % 3]
    assert len(index.nearest(embeddings[0].astype(np.float32), 1000)) == 300
    assert index.without(np.ones(300, bool)).nearest(embeddings[0].astype(np.float32), 5) == []


def test_the_digest_stays_when_rows_are_removed_and_nothing_is_left_of_them(tmp_path: Path) -> None:
    index, embeddings = made()
    removed = np.isin(np.arange(300), [0, 7, 299])
    less = index.without(removed)
    path = neighbours_of(tmp_path / "model.onnx")
    path.write_bytes(to_bytes(less))
    assert path.name == "model.neighbours.npz"
    again = read_index(path, index.digest)
    assert again.digest == index.digest
    assert again.state == less.state != index.state
    assert len(again.paths) == 297
    content = path.read_bytes()
    for row in (0, 7, 299):
        for part in (f"/\u00e9 {row}.png".encode(), index.points[row].tobytes(), index.pixels[row].tobytes()):
            assert part in to_bytes(index)
            assert part not in content
    assert again.nearest(embeddings[7].astype(np.float32), 1)[0].path != index.paths[7]
    twice = again.without(np.arange(297) == 0)
    assert (twice.digest, twice.fault) == (index.digest, None)
    assert to_bytes(made()[0]) == to_bytes(index), "the same index makes the same bytes"


def changed(index: TrainingIndex) -> dict[str, TrainingIndex]:
    other, labels = index.points.copy(), index.labels.copy()
    other[5, 5] += np.float16(0.5)
    labels[5] = (labels[5] + 1) % 3
    return {
        "a point": replace(index, points=other),
        "a label": replace(index, labels=labels),
        "a path": replace(index, paths=("elsewhere.png", *index.paths[1:])),
        "the pixels": replace(index, pixels=index.pixels[::-1].copy()),
        "the order": replace(index, places=index.places[::-1].copy()),
    }


@pytest.mark.parametrize("what", ["a point", "a label", "a path", "the pixels", "the order"])
def test_a_changed_row_is_refused(what: str, tmp_path: Path) -> None:
    index, _ = made()
    path = tmp_path / "x.neighbours.npz"
    path.write_bytes(to_bytes(changed(index)[what]))
    with pytest.raises(NeighboursRefused, match=r"a row was changed|in no order") as refused:
        read_index(path, index.digest)
    assert str(path) in str(refused.value)


def test_another_metric_other_classes_and_a_row_more_have_another_digest(tmp_path: Path) -> None:
    index, _ = made()
    others = [
        replace(index, metric=replace(index.metric, scale=index.metric.scale * 2)),
        replace(index, classes=("a", "b", "d")),
        made(rows=303)[0],
    ]
    for other in others:
        (tmp_path / "other.npz").write_bytes(to_bytes(other))
        with pytest.raises(NeighboursRefused, match="is of another model"):
            read_index(tmp_path / "other.npz", index.digest)


@pytest.mark.parametrize("kind", ["empty", "no archive", "cut off", "another archive", "wrong shape"])
def test_what_is_no_index_is_refused(kind: str, tmp_path: Path) -> None:
    index, _ = made()
    content = to_bytes(index)
    path = tmp_path / "x.npz"
    if kind == "another archive":
        np.savez(path, points=np.zeros(3))
    elif kind == "wrong shape":
        content = to_bytes(replace(index, paths=index.paths[1:]))
    if kind != "another archive":
        path.write_bytes(
            {"empty": b"", "no archive": b"text", "cut off": content[: len(content) // 2]}.get(kind, content)
        )
    with pytest.raises(NeighboursRefused, match="no index of training images"):
        from_bytes(path.read_bytes(), path)
