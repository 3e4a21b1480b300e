import logging
import os
from pathlib import Path

import pytest

from serving.contract.objects import StoreUnusable, Url
from serving.inference.mirror import Mirror
from tests.support.object_store import web

FIRST, SECOND = b"first" * 1000, b"second" * 1000


def test_a_new_version_is_fetched_and_the_same_one_is_not(tmp_path: Path) -> None:
    with web() as files:
        mirror = Mirror(Url(f"{files.address}/model.onnx"), tmp_path / "copy" / "model.onnx")
        assert mirror.refresh() == "missing"
        files.files["model.onnx"] = FIRST
        assert [mirror.refresh(), mirror.refresh()] == ["fetched", "unchanged"]
        assert mirror.file.read_bytes() == FIRST
        files.files["model.onnx"] = SECOND
        assert [mirror.refresh(), mirror.refresh()] == ["fetched", "unchanged"]
        assert mirror.file.read_bytes() == SECOND
        del files.files["model.onnx"]
        assert mirror.refresh() == "missing"
    assert mirror.refresh() == "failed"
    assert mirror.file.read_bytes() == SECOND


def test_an_object_that_changes_while_it_is_read_is_not_taken(tmp_path: Path) -> None:
    with web() as files:
        files.files["model.onnx"] = FIRST
        mirror = Mirror(Url(f"{files.address}/model.onnx"), tmp_path / "copy" / "model.onnx")
        assert mirror.refresh() == "fetched"
        files.files["model.onnx"] = SECOND
        files.before_get = lambda path: files.files.update({"model.onnx": b"third"})
        assert mirror.refresh() == "failed"
        assert mirror.file.read_bytes() == FIRST
        assert mirror.refresh() == "fetched"
        assert mirror.file.read_bytes() == b"third"


def test_a_signature_comes_later_changes_and_goes(tmp_path: Path) -> None:
    with web() as files:
        files.files["model.onnx"] = FIRST
        mirror = Mirror(Url(f"{files.address}/model.onnx"), tmp_path / "copy" / "model.onnx", signed=True)
        signature = tmp_path / "copy" / "model.onnx.sig"
        assert mirror.refresh() == "fetched"
        assert not signature.exists()
        files.files["model.onnx.sig"] = b"one"
        assert [mirror.refresh(), mirror.refresh()] == ["fetched", "unchanged"]
        assert signature.read_bytes() == b"one"
        del files.files["model.onnx.sig"]
        assert [mirror.refresh(), mirror.refresh()] == ["fetched", "unchanged"]
        assert not signature.exists()


def test_training_images_come_later_change_and_go(tmp_path: Path) -> None:
    with web() as files:
        files.files["model.onnx"] = FIRST
        mirror = Mirror(Url(f"{files.address}/model.onnx"), tmp_path / "copy" / "model.onnx", training_images=True)
        beside = tmp_path / "copy" / "model.neighbours.npz"
        assert mirror.refresh() == "fetched"
        for content in (b"one", b"another"):
            files.files["model.neighbours.npz"] = content
            assert [mirror.refresh(), mirror.refresh()] == ["fetched", "unchanged"]
            assert beside.read_bytes() == content
        del files.files["model.neighbours.npz"]
        assert [mirror.refresh(), mirror.refresh()] == ["fetched", "unchanged"]
        assert not beside.exists()


def test_a_copy_is_used_again_unless_it_is_damaged(tmp_path: Path) -> None:
    with web() as files:
        files.files["model.onnx"] = FIRST
        url, file = Url(f"{files.address}/model.onnx"), tmp_path / "copy" / "model.onnx"
        assert Mirror(url, file).refresh() == "fetched"
        assert Mirror(url, file).refresh() == "unchanged"
        file.write_bytes(SECOND)
        left = file.with_name(".model.onnx.new.1.partial")
        left.touch()
        assert Mirror(url, file).refresh() == "fetched"
        assert file.read_bytes() == FIRST
        assert not left.exists()


def test_a_failure_is_logged_once_and_its_end_too(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with web() as files, caplog.at_level(logging.INFO, "bentoml.twinlens"):
        mirror = Mirror(Url(f"{files.address}/model.onnx?secret"), tmp_path / "copy" / "model.onnx")
        files.files["model.onnx"] = FIRST
        mirror.refresh()
        files.etags = False
        for _ in range(3):
            mirror.refresh()
        files.etags = True
        for _ in range(3):
            mirror.refresh()
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == 3
    assert lines[0] == f"{files.address}/model.onnx: fetched to {mirror.file}"
    assert lines[1].endswith("would go unnoticed; the last copy is used, and it is tried again")
    assert lines[2] == f"{files.address}/model.onnx: unchanged"


@pytest.mark.skipif(os.getuid() != 0, reason="only root gives files to another user")
def test_a_folder_of_another_user_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    folder.mkdir()
    os.chown(folder, 12345, 12345)
    with pytest.raises(StoreUnusable, match=r"cache belongs to another user, .*TWINLENS_CACHE"):
        Mirror(Url("file:///model.onnx"), folder / "copy" / "model.onnx")
    os.chown(folder, 0, 0)
    assert Mirror(Url("file:///model.onnx"), folder / "copy" / "model.onnx").refresh() == "missing"
    assert (folder / "copy").stat().st_mode & 0o777 == 0o700
