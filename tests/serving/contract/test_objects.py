import os
from pathlib import Path

import pytest

from serving.contract.objects import Store, StoreUnusable, Url, location
from tests.support.object_store import web

HTTP = Url("https://me:secret@host.example/models/model.onnx?X-Amz-Signature=secret")


@pytest.mark.parametrize("text", ["s3://bucket/a b/model.onnx", "gs://bucket", "https://host/x?y=1", "file:///a"])
def test_a_protocol_makes_a_url(text: str) -> None:
    assert location(text) == Url(text)


@pytest.mark.parametrize("text", ["runs/latest/model.onnx", "/a/model.onnx", "s3:/bucket/x", "://x", "s3://", "C://x"])
def test_everything_else_is_a_path(text: str) -> None:
    assert location(text) == Path(text)


def test_what_is_shown_has_no_secrets() -> None:
    assert str(HTTP) == "https://host.example/models/model.onnx"
    assert "secret" not in HTTP.without_secrets(f"404, url={HTTP.text!r}, more")
    assert str(Url("sftp://me:secret@host.example/model.onnx")) == "sftp://host.example/model.onnx"
    assert str(Url("abfs://container@account/model.onnx")) == "abfs://container@account/model.onnx"
    assert str(Url("s3://bucket/what?.png")) == "s3://bucket/what?.png", "a key of S3 may have such a name"


def test_names_and_neighbours() -> None:
    assert (HTTP.name, Url("s3://bucket/photos/").name, Url("s3://bucket").name) == ("model.onnx", "photos", "bucket")
    assert HTTP.beside("x.sig").text == "https://me:secret@host.example/models/x.sig?X-Amz-Signature=secret"
    assert Url("s3://bucket/a/model.onnx").beside("x").text == "s3://bucket/a/x"


def test_a_version_changes_with_the_object(tmp_path: Path) -> None:
    file = tmp_path / "object"
    file.write_bytes(b"one")
    store = Store(Url(f"file://{file}"))
    first = store.version()
    assert store.version() == first
    file.write_bytes(b"two")
    os.utime(file, ns=(0, 1))
    assert store.version() != first
    file.unlink()
    with pytest.raises(FileNotFoundError, match=r"file://.*/object: there is no such object"):
        store.version()
    file.mkdir()
    with pytest.raises(IsADirectoryError, match="expected an object, and this is a folder"):
        store.version()


def test_a_folder_is_listed_with_versions(tmp_path: Path) -> None:
    for name in ("a/1.png", "a/b/2.png", "3.csv"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(name.encode())
    store = Store(Url(f"file://{tmp_path}/"))
    versions = store.versions()
    assert list(versions) == ["3.csv", "a/1.png", "a/b/2.png"]
    assert len(set(versions.values())) == 3
    store.download(tmp_path / "copy", "a/b/2.png")
    assert (tmp_path / "copy").read_bytes() == b"a/b/2.png"


def test_a_copy_that_fails_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"before")
    with web() as files:
        with pytest.raises(FileNotFoundError):
            Store(Url(f"{files.address}/absent")).download(tmp_path / "file")
        files.files["there"] = b"now"
        Store(Url(f"{files.address}/there")).download(tmp_path / "file2")
    assert (tmp_path / "file").read_bytes() == b"before"
    assert (tmp_path / "file2").read_bytes() == b"now"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "file2"], "nothing is left"


def test_without_etag_and_time_a_change_would_go_unnoticed() -> None:
    with web() as files:
        files.files["model.onnx"] = b"one"
        files.etags = False
        with pytest.raises(OSError, match="neither an ETag nor a time"):
            Store(Url(f"{files.address}/model.onnx")).version()


def test_errors_of_libraries_are_oserrors_without_secrets() -> None:
    with pytest.raises(OSError, match=r"^http://127\.0\.0\.1:1/x: cannot be read \(ClientConnectorError") as failed:
        Store(Url("http://me:secret@127.0.0.1:1/x?token=secret")).version()
    assert "secret" not in str(failed.value)


def test_an_unknown_protocol_is_refused() -> None:
    with pytest.raises(StoreUnusable, match=r"store://x: expected a path, or a URL that fsspec reads"):
        Store(Url("store://x"))
