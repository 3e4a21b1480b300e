"""From training to a service that reads its model in an object store, which only a promoted model reaches."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from serving.contract.model import open_model
from tests.support.object_store import BUCKET, S3, s3
from tests.support.processes import wait_until
from tests.support.promotions import POOR, copied, latest, make
from tests.support.server import serving
from tests.support.signed import keys, sign
from training.__main__ import main
from training.forgetting.dependents import mark

NEIGHBOURS = "models/skin/model.neighbours.npz"
FOLDER = f"s3://{BUCKET}/models/skin"


@pytest.fixture
def store() -> Iterator[S3]:
    with s3() as started_store:
        yield started_store


def published(store: S3, out: Path, to: str = FOLDER) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "training", "publish", to, "--out", str(out)]
    given = os.environ | store.environment
    return subprocess.run(command, env=given, capture_output=True, text=True, timeout=120, check=False)


@pytest.mark.long
def test_a_service_takes_what_was_promoted_and_nothing_else(store: S3, run: Path, photos: Path, tmp_path: Path) -> None:
    out = copied(run.parent, tmp_path / "runs")
    private, public = keys(tmp_path)
    sign(out / "tiny", private)
    given: dict[str, Any] = store.environment | {
        "BENTOML_HOME": str(tmp_path / "home"),
        "TMPDIR": str(tmp_path),
        "TWINLENS_RELOAD_S": "0.2",
        "TWINLENS_PUBLIC_KEY": str(public),
    }
    with serving(f"{FOLDER}/model.onnx", until="livez", **given) as address:

        def answers() -> str:
            return httpx.get(f"{address}/model").headers.get("etag", "").strip('"')

        assert answers() == ""
        done = published(store, out)
        assert done.returncode == 0, done.stderr
        first = open_model(out / "tiny" / "model.onnx", threads=0).digest
        wait_until(lambda: answers() == first)

        make(photos, out, name="poor", **POOR)
        assert latest(out) == "tiny"
        assert published(store, out).returncode == 0
        poor = open_model(out / "poor" / "model.onnx", threads=0).digest
        image = {"image": next(photos.rglob("*.png")).read_bytes()}
        assert httpx.post(f"{address}/similar", files=image).status_code == 404
        assert NEIGHBOURS not in {*store.keys()}
        better = make(photos, out, name="better", promote="always", seed=7, unfamiliar=0.2)
        sign(better, private)
        assert answers() == first != poor
        assert published(store, out).returncode == 0
        wait_until(lambda: answers() == open_model(better / "model.onnx", threads=0).digest)
        assert NEIGHBOURS in {*store.keys()}
        assert len(httpx.post(f"{address}/similar", files=image).json()["similar"]) == 5

        (out / "latest").unlink()
        (out / "latest").symlink_to("poor")
        by_hand = published(store, out)
        assert by_hand.returncode == 2
        assert "has not moved it there" in by_hand.stderr


def test_what_is_wrong_with_the_store_is_said(
    store: S3, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in store.environment.items():
        monkeypatch.setenv(name, value)
    out = ["--out", str(run.parent)]
    assert main(["publish", "s3://another-bucket/models", *out]) == 6
    assert "s3://another-bucket/models: cannot be written (" in capsys.readouterr().err
    assert main(["publish", "models", *out]) == 2
    assert "expected a URL of a folder" in capsys.readouterr().err
    assert main(["publish", FOLDER, "--out", str(tmp_path)]) == 2
    assert "there is no promoted model" in capsys.readouterr().err
    assert store.keys() == []


def test_a_run_that_was_marked_since_is_not_published(
    store: S3, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nor served elsewhere: its weights depend on images that were forgotten. Who forces its promotion may."""
    for name, value in store.environment.items():
        monkeypatch.setenv(name, value)
    out = copied(run.parent, tmp_path / "runs")
    mark(out / "tiny")
    assert main(["publish", FOLDER, "--out", str(out)]) == 2
    assert "depend on images that were forgotten; promote another run first" in capsys.readouterr().err
    assert store.keys() == []
    (out / "latest").unlink()
    assert main(["promote", str(out / "tiny"), "--force", "--reason", "until the new one is trained"]) == 0
    assert main(["publish", FOLDER, "--out", str(out)]) == 0
    assert set(store.keys()) >= {"models/skin/model.onnx"}
