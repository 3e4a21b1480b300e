"""TWINLENS_PUBLIC_KEY: at the start and at reloads of a real server, in the check and in offline scoring."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from serving.contract.model import open_model
from tests.support.forged_models import rewritten
from tests.support.paths import ROOT
from tests.support.replies import metric
from tests.support.server import serving
from tests.support.signed import keys, sign


def renamed(graph: object, card: dict[str, Any]) -> dict[str, Any]:
    return card | {"version": "next"}


def eventually(holds: Callable[[], bool]) -> bool:
    until = time.monotonic() + 30
    while not (held := holds()) and time.monotonic() < until:
        time.sleep(0.1)
    return held


@pytest.mark.slow
def test_a_service_with_a_key_serves_what_was_signed_and_nothing_else(run: Path, tmp_path: Path) -> None:
    private, public = keys(tmp_path)
    one, two = tmp_path / "one", tmp_path / "two"
    one.mkdir()
    two.mkdir()
    shutil.copy(run / "model.onnx", one)
    rewritten(run / "model.onnx", two / "model.onnx", renamed)
    link = tmp_path / "latest"
    link.symlink_to("one")
    settings: dict[str, Any] = {
        "BENTOML_HOME": str(tmp_path / "home"),
        "TWINLENS_RELOAD_S": "0.2",
        "TWINLENS_PUBLIC_KEY": public.read_text(),
    }
    with (
        pytest.raises(AssertionError, match=r"not ready: .*latest/model\.onnx: no signature: model\.onnx\.sig beside"),
        serving(link / "model.onnx", **settings),
    ):
        pass
    sign(one, private)
    first = open_model(one / "model.onnx").card.version
    with serving(link / "model.onnx", **settings) as address:

        def version() -> str:
            return str(httpx.get(f"{address}/model").json()["version"])

        def refused(count: int) -> bool:
            text = httpx.get(f"{address}/metrics").text
            return metric(text, "twinlens_reloads_total", outcome="refused") == count

        assert version() == first
        (tmp_path / "next").symlink_to("two")
        (tmp_path / "next").replace(link)
        assert eventually(lambda: refused(1))
        assert version() == first, "the one before answers"
        (two / "model.onnx.sig").write_bytes((one / "model.onnx.sig").read_bytes())
        assert eventually(lambda: refused(2))
        assert version() == first
        sign(two, private)
        assert eventually(lambda: version() == "next"), "a signature that comes later is noticed"


@pytest.mark.parametrize("given", ["private key", "no key", "no file"])
def test_a_key_that_is_none_ends_the_start_and_is_not_shown(run: Path, tmp_path: Path, given: str) -> None:
    private, _ = keys(tmp_path)
    (tmp_path / "text").write_text("not a key")
    value = {"private key": private.read_text(), "no key": str(tmp_path / "text"), "no file": "/absent.pub"}[given]
    settings: dict[str, Any] = {"BENTOML_HOME": str(tmp_path / "home"), "TWINLENS_PUBLIC_KEY": value}
    with (
        pytest.raises(AssertionError, match=r"TWINLENS_PUBLIC_KEY: .*expected an Ed25519 public key in PEM") as ended,
        serving(run / "model.onnx", **settings),
    ):
        pass
    assert private.read_text().splitlines()[1] not in str(ended.value)


@pytest.mark.long
def test_check_and_batch_follow_the_same_rule(run: Path, photos: Path, tmp_path: Path) -> None:
    private, public = keys(tmp_path)
    model = Path(shutil.copy(run / "model.onnx", tmp_path))

    def command(*arguments: object, key: str = str(public)) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", *map(str, arguments), "--model", str(model)],
            cwd=ROOT,
            env=os.environ | {"TWINLENS_PUBLIC_KEY": key},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    batch = ("serving.batch", photos / "blue", "--out")
    unsigned = command(*batch, tmp_path / "a.csv")
    assert (unsigned.returncode, (tmp_path / "a.csv").exists()) == (7, False)
    assert "model.onnx: no signature: " in unsigned.stderr
    checked = command("serving", "check", "--out", tmp_path / "check")
    assert checked.returncode == 1
    assert "no signature: " in checked.stdout
    sign(model, private)
    assert command(*batch, tmp_path / "b.csv").returncode == 0
    assert command("serving", "check", "--out", tmp_path / "check").returncode == 0
    for arguments in ((*batch, tmp_path / "c.csv"), ("serving", "check", "--out", tmp_path / "check")):
        wrong = command(*arguments, key="/absent.pub")
        assert wrong.returncode == 2
        assert wrong.stderr.startswith("error: TWINLENS_PUBLIC_KEY: /absent.pub: cannot be read")
