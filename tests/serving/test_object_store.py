"""TWINLENS_MODEL as a URL: real servers, a real S3 server of moto."""

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from serving.contract.extras import install_command
from serving.contract.model import open_model
from tests.support.forged_models import REFUSED, rewritten
from tests.support.object_store import BUCKET, S3, s3
from tests.support.paths import ROOT
from tests.support.pictures import picture
from tests.support.processes import wait_until
from tests.support.replies import error, metric
from tests.support.server import serving, started
from tests.support.signed import keys, sign

KEY = "runs/latest/model.onnx"
MODEL = f"s3://{BUCKET}/{KEY}"


@pytest.fixture
def store() -> Iterator[S3]:
    with s3() as started_store:
        yield started_store


@pytest.fixture
def settings(store: S3, tmp_path: Path) -> dict[str, Any]:
    """Everything that a server writes is in one folder."""
    (tmp_path / "tmp").mkdir()
    home = {"BENTOML_HOME": str(tmp_path / "tmp" / "bentoml"), "TMPDIR": str(tmp_path / "tmp")}
    return store.environment | home | {"TWINLENS_RELOAD_S": "0.2"}


@pytest.fixture(scope="module")
def models(run: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    return {
        "first": run / "model.onnx",
        "other": rewritten(run / "model.onnx", folder / "other.onnx", lambda graph, card: card | {"version": "other"}),
        "refused": rewritten(run / "model.onnx", folder / "refused.onnx", REFUSED["other pixels"][0]),
    }


def version(address: str) -> str:
    return str(httpx.get(f"{address}/model").json().get("version"))


def count(address: str, name: str, outcome: str) -> float:
    return metric(httpx.get(f"{address}/metrics").text, name, outcome=outcome)


def readyz(address: str) -> str:
    reply = httpx.get(f"{address}/readyz")
    assert (reply.status_code, error(reply)) == (503, "no_model")
    return str(reply.json()["error"]["message"])


@pytest.mark.slow
def test_it_waits_serves_reloads_and_outlives_the_store(
    store: S3, settings: dict[str, Any], models: dict[str, Path], tmp_path: Path, png: Callable[..., bytes]
) -> None:
    image = png(picture("blue"))
    statuses: list[int] = []
    over = threading.Event()

    def ask(address: str) -> None:
        while not over.is_set():
            statuses.append(httpx.post(f"{address}/predict", files={"image": image}, timeout=30).status_code)

    first = open_model(models["first"]).card.version
    with serving(MODEL, until="livez", log=tmp_path / "log", **settings) as address:
        wait_until(lambda: "its URL leads to no object" in readyz(address))
        assert BUCKET not in readyz(address)
        store.put(KEY, models["first"])
        wait_until(lambda: httpx.get(f"{address}/readyz").status_code == 200)
        assert version(address) == first
        asking = threading.Thread(target=ask, args=(address,))
        asking.start()
        store.put(KEY, models["other"])
        wait_until(lambda: version(address) == "other")
        store.put(KEY, models["refused"])
        wait_until(lambda: count(address, "twinlens_reloads_total", "refused") == 1)
        assert version(address) == "other"
        store.delete(KEY)
        missing = count(address, "twinlens_fetches_total", "missing")
        wait_until(lambda: count(address, "twinlens_fetches_total", "missing") > missing)
        store.stop()
        wait_until(lambda: count(address, "twinlens_fetches_total", "failed") >= 2)
        assert count(address, "twinlens_fetches_total", "fetched") == 3
        store.start()
        store.put(KEY, models["first"])
        wait_until(lambda: version(address) == first)
        over.set()
        asking.join()
    assert len(statuses) > 10
    assert set(statuses) == {200}, "no request is lost"
    log = (tmp_path / "log").read_text()
    assert log.count("cannot be read (EndpointConnectionError") == 1, "a failure is logged once, not at every look"


@pytest.mark.long
def test_of_two_workers_one_fetches_and_both_answer(
    store: S3, settings: dict[str, Any], models: dict[str, Path]
) -> None:
    store.put(KEY, models["first"])
    with serving(MODEL, TWINLENS_WORKERS="2", **settings) as address:
        store.put(KEY, models["other"])
        wait_until(lambda: count(address, "twinlens_reloads_total", "swapped") == 2)
        assert {version(address) for _ in range(20)} == {"other"}
        assert count(address, "twinlens_fetches_total", "fetched") == 1


@pytest.mark.long
def test_after_a_restart_the_copy_answers_where_the_store_does_not(
    store: S3, settings: dict[str, Any], models: dict[str, Path], tmp_path: Path
) -> None:
    store.put(KEY, models["other"])
    with serving(MODEL, TWINLENS_CACHE=str(tmp_path / "cache"), **settings):
        pass
    store.stop()
    with serving(MODEL, TWINLENS_CACHE=str(tmp_path / "cache"), log=tmp_path / "log", **settings) as address:
        assert version(address) == "other"
    assert "the last copy is used, and it is tried again" in (tmp_path / "log").read_text()


@pytest.mark.long
def test_the_end_does_not_wait_for_a_store_that_hangs(
    store: S3, settings: dict[str, Any], models: dict[str, Path], tmp_path: Path
) -> None:
    store.put(KEY, models["first"])
    cache = {"TWINLENS_CACHE": str(tmp_path / "cache")}
    with started(MODEL, tmp_path / "home", tmp_path / "log", **settings | cache) as (server, address):
        store.pause()
        looks = count(address, "twinlens_fetches_total", "unchanged")
        time.sleep(1)
        assert count(address, "twinlens_fetches_total", "unchanged") <= looks + 1
        server.terminate()
        assert server.wait(timeout=15) == 0


@pytest.mark.long
def test_the_start_does_not_wait_for_a_store_that_hangs(
    store: S3, settings: dict[str, Any], models: dict[str, Path], tmp_path: Path
) -> None:
    store.put(KEY, models["other"])
    settings["TWINLENS_CACHE"] = str(tmp_path / "cache")
    store.pause()
    with serving(MODEL, until="livez", log=tmp_path / "log", **settings) as address:
        assert "no model yet" in readyz(address)
        store.resume()
        wait_until(lambda: httpx.get(f"{address}/readyz").status_code == 200)
        assert version(address) == "other"
    assert "not fetched within 10 s" in (tmp_path / "log").read_text()
    store.pause()
    with serving(MODEL, **settings) as address:
        assert version(address) == "other", "the copy answers"


@pytest.mark.long
def test_what_cannot_work_ends_the_start_with_a_sentence(
    store: S3, settings: dict[str, Any], models: dict[str, Path], tmp_path: Path
) -> None:
    def refusal(model: str, **more: Any) -> str:
        with pytest.raises(AssertionError) as ended, serving(model, **settings | more):
            pass
        return str(ended.value)

    assert "store://bucket/model.onnx: expected a path, or a URL that fsspec reads" in refusal(
        "store://bucket/model.onnx"
    )
    (tmp_path / "gcsfs.py").write_text("raise ImportError('as if it was not installed')")
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    assert install_command("gcs") in refusal("gs://bucket/model.onnx", PYTHONPATH=path)
    (tmp_path / "file").touch()
    assert "TWINLENS_CACHE names another place" in refusal(MODEL, TWINLENS_CACHE=str(tmp_path / "file"))
    assert "no model yet" in refusal(MODEL, TWINLENS_RELOAD_S="0")
    store.put(KEY, models["refused"])
    assert "golden 0: resizing does not give the pixels" in refusal(MODEL)


@pytest.mark.long
def test_batch_and_check_take_the_same_url(store: S3, run: Path, photos: Path, tmp_path: Path) -> None:
    private, public = keys(tmp_path)
    store.put(KEY, run / "model.onnx")

    def command(*arguments: object) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [sys.executable, "-m", *map(str, arguments), "--model", MODEL],
            cwd=ROOT,
            env=os.environ | store.environment | {"TWINLENS_PUBLIC_KEY": str(public), "TMPDIR": str(tmp_path / "tmp")},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    (tmp_path / "tmp").mkdir()
    batch = ("serving.batch", photos / "blue", "--out", tmp_path / "answers.csv")
    check = ("serving", "check", "--out", tmp_path / "check")
    assert command(*batch).returncode == 7, "it is not signed"
    (tmp_path / "signed").mkdir()
    (tmp_path / "signed" / "model.onnx").write_bytes((run / "model.onnx").read_bytes())
    sign(tmp_path / "signed" / "model.onnx", private)
    store.put(f"{KEY}.sig", tmp_path / "signed" / "model.onnx.sig")
    done = command(*batch)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "answers.csv").read_text().count("blue") >= 30
    done = command(*check)
    assert done.returncode == 0, done.stdout + done.stderr
    store.delete(KEY)
    assert command("serving.batch", photos / "blue", "--out", tmp_path / "b.csv").returncode == 6
    done = command(*check)
    assert (done.returncode, done.stderr) == (2, f"error: {MODEL}: there is no such object\n")
    assert list((tmp_path / "tmp").iterdir()) == [], "nothing is left"
