"""`python -m serving check`, as a command on this machine and on a stand-in for a GPU."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from serving.check.__main__ import check
from serving.contract.selfcheck import CheckLine
from serving.settings import Settings
from tests.support import cuda
from tests.support.paths import ROOT


def command(*arguments: object, cwd: Path = ROOT, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "serving", "check", *map(str, arguments)],
        cwd=cwd,
        env=os.environ | {"PYTHONPATH": str(ROOT)} | environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def lines(folder: Path) -> dict[str, dict[str, Any]]:
    return {line["name"]: line for line in json.loads((folder / "check.json").read_text())["serving"]["lines"]}


def test_the_command_tries_all_that_this_machine_can_show(run: Path, tmp_path: Path) -> None:
    done = command("--out", tmp_path, TWINLENS_MODEL=str(run / "model.onnx"), TWINLENS_MAX_BATCH="8")
    assert done.returncode == 0, done.stdout + done.stderr
    tried = lines(tmp_path)
    for name in ("providers", "model on CPU", "latency by batch", "32 at once"):
        assert tried[name]["status"] == "passed", tried[name]
    times = tried["latency by batch"]["numbers"]
    assert {f"batch {size}, ms" for size in (1, 2, 4, 8)} <= times.keys()
    assert tried["32 at once"]["numbers"]["images/s"] > 0
    assert "model.int8.onnx does not exist" in tried["eight bits"]["detail"]
    assert all(name in done.stdout for name in tried)


def test_without_a_model_it_says_what_makes_one(tmp_path: Path) -> None:
    done = command(cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "`python -m training check` leaves models" in lines(tmp_path / "check")["model on CPU"]["detail"]


def test_a_named_model_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    absent = tmp_path / "absent.onnx"
    for done in (
        command("--model", absent, "--out", tmp_path / "by_option"),
        command("--out", tmp_path / "by_setting", TWINLENS_MODEL=str(absent)),
    ):
        assert done.returncode == 2
        assert f"{absent}: there is no such file" in done.stderr
    assert not list(tmp_path.iterdir()), "refused before anything was measured"


def test_a_line_that_fails_is_the_exit_code(run: Path, tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes((run / "model.onnx").read_bytes()[:5000])
    done = command("--model", tmp_path / "model.onnx", "--out", tmp_path)
    assert done.returncode == 1
    failed = lines(tmp_path)["model on CPU"]
    assert failed["status"] == "failed"
    assert "ModelRefused: " in failed["detail"]
    assert command("--out", tmp_path, TWINLENS_MAX_BATCH="many").returncode == 2
    assert command("--out", tmp_path / "model.onnx").returncode == 2, "there is a file of that name"


def on_stand_in(monkeypatch: pytest.MonkeyPatch, provider: cuda.Provider, model: Path) -> dict[str, CheckLine]:
    cuda.install(monkeypatch, provider, cards=[cuda.CARD] * 2)
    return {line.name: line for line in check(Settings(model=model, max_batch=8)).lines}


@pytest.mark.slow
def test_on_a_gpu_every_line_is_tried(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As far as a stand-in without a device can show."""
    tried = on_stand_in(monkeypatch, cuda.Provider(), run / "model.onnx")
    names = ("driver", "card", "model on GPU 0", "model on GPU 1", "GPU beside CPU", "changing batches")
    assert {name: tried[name].status for name in names} == dict.fromkeys(names, "passed")
    assert [line.name for line in tried.values() if line.status == "failed"] == []


@pytest.mark.slow
def test_a_card_without_kernels_fails_its_lines_and_leaves_those_of_the_cpu(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried = on_stand_in(monkeypatch, cuda.Provider(fails=lambda images: cuda.NO_KERNEL), run / "model.onnx")
    for name in ("model on GPU 0", "model on GPU 1", "GPU beside CPU"):
        assert tried[name].status == "failed"
        assert "no kernels for NVIDIA B200 (compute capability 10.0)" in tried[name].detail
    assert tried["model on CPU"].status == "passed"


@pytest.mark.gpu
def test_on_this_machine_s_gpu_nothing_fails(run: Path, tmp_path: Path) -> None:
    done = command("--model", run / "model.onnx", "--out", tmp_path, TWINLENS_REQUIRE_GPU="1")
    assert done.returncode == 0, done.stdout + done.stderr
    assert lines(tmp_path)["model on GPU 0"]["status"] == "passed"
