import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest

from serving.contract.model import open_model
from serving.contract.objects import Url
from tests.support.object_store import BUCKET, S3, s3
from tests.support.paths import ROOT
from training.__main__ import main
from training.data.dataset import Dataset, load_dataset
from training.data.sources import objects
from training.data.sources.objects import local_copy
from training.errors import ConfigError, DataError
from training.options.config import TrainConfig


@pytest.fixture(scope="module")
def server() -> Iterator[S3]:
    with s3() as store:
        yield store


@pytest.fixture
def store(server: S3, monkeypatch: pytest.MonkeyPatch) -> S3:
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    return server


def url(path: str) -> Url:
    return Url(f"s3://{BUCKET}/{path}")


def loaded(data: Url | Path, out: Path) -> Dataset:
    return load_dataset(TrainConfig(data=data, out=out, model="mlp", image_size=24))


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.slow
def test_a_folder_is_the_same_data_as_on_disk_and_later_only_changes_are_fetched(
    store: S3, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    local = tmp_path / "photos"
    shutil.copytree(photos, local)
    store.put_folder("photos", local)
    store.put("photos/blue/", b"")  # as the web page of S3 makes folders
    first = loaded(url("photos/"), tmp_path / "runs")
    assert first.digest == loaded(local, tmp_path / "local").digest
    assert first.name == f"s3://{BUCKET}/photos/"
    assert "data   s3://bucket/photos/: 90 of 90 objects are fetched" in capsys.readouterr().out
    cache = tmp_path / "runs" / ".cache"
    copy = local_copy(url("photos/"), cache)
    assert files(copy) == files(local)
    assert "fetched" not in capsys.readouterr().out
    untouched = (copy / "blue" / "3.png").stat().st_ctime_ns

    picture = np.zeros((40, 40, 3), np.uint8)
    assert cv2.imwrite(str(local / "blue" / "0.png"), picture)
    store.put("photos/blue/0.png", local / "blue" / "0.png")
    for path in (local / "green leaf" / "nested folder").iterdir():
        store.delete(f"photos/green leaf/nested folder/{path.name}")
    shutil.rmtree(local / "green leaf" / "nested folder")
    (copy / "Red rash" / "0.png").unlink()
    again = loaded(url("photos/"), tmp_path / "runs")
    assert "2 of 80 objects are fetched" in capsys.readouterr().out
    assert files(copy) == files(local)
    assert again.digest == loaded(local, tmp_path / "local").digest != first.digest
    assert (copy / "blue" / "3.png").stat().st_ctime_ns == untouched, "so that it need not be decoded again"
    assert not (copy / "green leaf" / "nested folder").exists()


def test_of_a_manifest_the_listed_images_are_fetched(store: S3, photos: Path, tmp_path: Path) -> None:
    store.put_folder("listed/images", photos)
    paths = sorted(path for path in photos.rglob("*.png"))
    rows = [f"images/{path.relative_to(photos)},{path.parent.name}" for path in paths]
    store.put("listed/labels.csv", "\n".join(["path,label", *rows]).encode())
    dataset = loaded(url("listed/labels.csv"), tmp_path)
    assert len(dataset.keys) == len(rows) == 30
    copy = local_copy(url("listed/labels.csv"), tmp_path / ".cache")
    assert len(files(copy.parent)) == 31
    store.put(
        "listed/labels.csv", "\n".join(["path,label", *(f"./{row.replace('/', '//', 1)}" for row in rows)]).encode()
    )
    assert len(loaded(url("listed/labels.csv"), tmp_path).keys) == 30, "as on a disk, where these are the same files"
    store.put("listed/labels.csv", "\n".join(["path,label", *rows, "images/absent.png,blue"]).encode())
    expected = (
        r"s3://bucket/listed/labels\.csv: images that do not exist in s3://bucket/listed: 1\n  line 32: images/absent"
    )
    with pytest.raises(DataError, match=expected):
        loaded(url("listed/labels.csv"), tmp_path)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("path,class\na.png,x\n", "no column label"),
        ("path,label\na.png,x\nb.png,\n", r"rows without a label: 1\n  line 3: b\.png"),
        ("path,label,split\na.png,x,train\nb.png,y,holdout\n", r"splits other than .*: 1\n  holdout"),
        ("path,label\na.png,x\na.png,y\n", r"paths that appear more than once: 1\n  a\.png"),
        ("path,label\na.png,x\nc.png,y\n", r"images that do not exist in .*/refused: 1\n  line 3: c\.png"),
    ],
)
def test_a_manifest_that_is_refused_costs_no_image(text: str, reason: str, store: S3, tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        store.put(f"refused/{name}", b"1")
    store.put("refused/labels.csv", text.encode())
    with pytest.raises(DataError, match=reason):
        local_copy(url("refused/labels.csv"), tmp_path)
    assert {Path(path).name for path in files(tmp_path)} == {".lock", "labels.csv"}


def test_where_no_object_can_be_read_not_all_are_tried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(objects, "OBJECTS_A_RECORD", 2)
    (tmp_path / "store").mkdir()
    for number in range(6):
        (tmp_path / "store" / f"{number}.png").symlink_to("nowhere")
    (tmp_path / "store" / "last.png").write_bytes(b"1")
    with pytest.raises(FileNotFoundError, match=r"store: there is no such object"):
        local_copy(Url(f"file://{tmp_path}/store"), tmp_path / "cache")
    assert not list(tmp_path.glob("cache/*/store/last.png"))
    for number in range(5):
        (tmp_path / "store" / f"{number}.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"store: there is no such object"):
        local_copy(Url(f"file://{tmp_path}/store"), tmp_path / "cache")
    assert list(tmp_path.glob("cache/*/store/last.png")), "one alone that cannot be read stops no others"


def test_an_npz_is_fetched(store: S3, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 255, (60, 12, 12, 3), np.uint8), np.arange(60) % 3
    np.savez(tmp_path / "cells.npz", train_images=images, train_labels=labels)
    store.put("some/cells.npz", tmp_path / "cells.npz")
    assert loaded(url("some/cells.npz"), tmp_path).digest == loaded(tmp_path / "cells.npz", tmp_path / "b").digest


@pytest.mark.slow
def test_a_run_that_is_killed_resumes_with_what_it_has(store: S3, photos: Path, tmp_path: Path) -> None:
    store.put_folder("resumed", photos)
    copy = local_copy(url("resumed"), tmp_path)
    record = copy.parent / "versions.json"
    kept = record.read_bytes()
    record.unlink()
    left = copy / "blue" / ".0.png.1.partial"
    left.touch()
    assert files(local_copy(url("resumed"), tmp_path)) == files(photos), "without a record all is fetched again"
    assert record.read_bytes() == kept


@pytest.mark.parametrize("key", ["a/../../b.png", "a//b.png", "./a.png", "a"])
def test_names_that_no_file_can_have_are_refused(store: S3, tmp_path: Path, key: str) -> None:
    prefix = f"odd{hash(key)}"
    store.put(f"{prefix}/a/b.png", b"1")
    store.put(f"{prefix}/{key}", b"2")
    with pytest.raises(DataError, match=r"names that no file can have: 1\n"):
        local_copy(url(prefix), tmp_path)
    assert files(tmp_path).keys() <= {next(path.name for path in tmp_path.iterdir()) + "/.lock"}


def test_what_cannot_be_read_ends_with_a_sentence(
    store: S3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(DataError, match=r"s3://bucket/nothing: there is no such folder"):
        local_copy(url("nothing"), tmp_path)
    with pytest.raises(FileNotFoundError, match=r"s3://bucket/nothing\.npz: there is no such object"):
        local_copy(url("nothing.npz"), tmp_path)
    with pytest.raises(ConfigError, match=r"--data store://x: expected a path, or a URL that fsspec reads"):
        local_copy(Url("store://x"), tmp_path)
    assert main(["audit", "--data", f"s3://{BUCKET}/photos", "--out", str(tmp_path / "audit")]) == 2
    assert "--cache: expected a folder in which to keep a copy" in capsys.readouterr().err
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:1")
    connections = pytest.importorskip("s3fs").S3FileSystem
    connections.clear_instance_cache()
    try:
        assert main(["--data", f"s3://{BUCKET}/photos", "--out", str(tmp_path / "runs"), "--name", "a"]) == 6
    finally:
        connections.clear_instance_cache()
    assert "s3://bucket/photos: cannot be read (EndpointConnectionError" in capsys.readouterr().err
    assert not (tmp_path / "runs" / "a").exists()


@pytest.mark.slow
def test_training_from_a_bucket_is_training_from_a_disk(store: S3, photos: Path, run: Path, tmp_path: Path) -> None:
    store.put_folder("trained", photos)
    options = ["--data", f"s3://{BUCKET}/trained/", "--out", str(tmp_path), "--name", "run", "--val-fraction", "0.2"]
    options += ["--model", "mlp", "--hidden", "32", "--image-size", "24", "--epochs", "4", "--batch-size", "16"]
    command = [sys.executable, "-m", "training", *options]
    done = subprocess.run(command, cwd=ROOT, env=os.environ, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    local, here = (open_model(path / "model.onnx").card for path in (run, tmp_path / "run"))
    assert here.provenance.data_digest == local.provenance.data_digest
    assert here.version == local.version, "the weights are the same to the bit"
    assert "data: s3://bucket/trained/" in (tmp_path / "run" / "config.yaml").read_text()
