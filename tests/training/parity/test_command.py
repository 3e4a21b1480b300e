"""`python -m training parity`, on a finished run and beside the real service."""

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from serving.contract import gpu
from tests.support import trainer
from tests.support.forged_models import rewritten
from tests.support.server import serving
from training.engine import checkpoint

TOKEN = "a-token-of-the-tests"


def command(*arguments: object) -> "subprocess.CompletedProcess[str]":
    return trainer.command("parity", *arguments)


@pytest.fixture(scope="module")
def url(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    tokens = tmp_path_factory.mktemp("tokens") / "tokens"
    tokens.write_text(f"{TOKEN}\n")
    with serving(run / "model.onnx", TWINLENS_TOKEN_FILE=str(tokens)) as address:
        yield address


def test_record_torch_file_and_service_agree_on_every_image(run: Path, photos: Path, url: str, tmp_path: Path) -> None:
    (tmp_path / "token").write_text(f"{TOKEN}\n")
    service = ("--url", url, "--token-file", tmp_path / "token")
    done = command(run, "--data", photos, "--out", tmp_path / "out", *service)
    assert done.returncode == 0, done.stdout + done.stderr
    facts = json.loads((tmp_path / "out" / "parity.json").read_text())
    names = [way["way"] for way in facts["ways"]]
    assert names[0] == "torch, the run's checkpoint, on the CPU"
    assert {"predictions.csv, what the run evaluated", "model.onnx on the CPU", f"the service at {url}"} <= set(names)
    report = json.loads((run / "report" / "report.json").read_text())
    assert facts["images"] == report["scores"]["test"]["images"]
    for way in facts["ways"][1:]:
        assert way["labels_differ"] == 0
        assert 0 < way["largest_difference"] < 1e-5, "other code computed it"
    assert "Every answer is the same" in done.stdout
    assert all(name in (tmp_path / "out" / "parity.html").read_text().replace("&#39;", "'") for name in names)


@pytest.mark.slow
def test_another_checkpoint_is_named_with_what_differs(run: Path, photos: Path, tmp_path: Path) -> None:
    copy = tmp_path / "run"
    shutil.copytree(run, copy, symlinks=True)
    best = copy / "checkpoints" / "best.pt"
    content = checkpoint.load(best, torch.device("cpu"))
    name = next(name for name in content["model"] if name.startswith("2.") and name.endswith("bias"))
    content["model"][name][0] += 30
    checkpoint.save(content, best)
    done = command(copy, "--data", photos, "--out", tmp_path / "out")
    assert done.returncode == 1, done.stderr
    assert "NOT every answer is the same" in done.stdout
    assert "model.onnx on the CPU: " in done.stderr
    assert "labels differ, largest difference of a probability" in done.stderr
    facts = json.loads((tmp_path / "out" / "parity.json").read_text())
    assert not facts["held"]
    assert facts["ways"][-1]["labels_differ"] > 0


@pytest.mark.long
def test_providers_are_chosen_and_refused_before_images_are_read(run: Path, photos: Path, tmp_path: Path) -> None:
    done = command(run, "--data", photos, "--out", tmp_path / "out", "--provider", "cpu")
    assert done.returncode == 0, done.stderr
    names = [way["way"] for way in json.loads((tmp_path / "out" / "parity.json").read_text())["ways"]]
    assert names[1:] == ["predictions.csv, what the run evaluated", "model.onnx on the CPU"]
    for provider, code, reason in (
        ("tpu", 2, "--provider tpu: expected cpu, cuda or cpu,cuda"),
        *([] if gpu.gpus() else [("cpu,cuda", 8, "--provider cpu,cuda: ")]),
    ):
        done = command(run, "--data", tmp_path / "never-read", "--provider", provider)
        assert done.returncode == code, done.stderr
        assert reason in done.stderr


@pytest.mark.slow
def test_a_file_alone_has_nothing_to_be_compared_with(run: Path, tmp_path: Path) -> None:
    shutil.copy(run / "model.onnx", tmp_path / "model.onnx")
    done = command(tmp_path / "model.onnx", "--data", tmp_path / "never-read")
    assert done.returncode == 2
    assert "there is nothing to compare with; expected a run's folder with its checkpoint, or --url" in done.stderr


@pytest.mark.long
def test_a_service_that_cannot_answer_is_refused_before_images_are_read(run: Path, url: str, tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    for arguments, reason in {
        (run, "--url", "http://127.0.0.1:9"): "--url http://127.0.0.1:9: [Errno 111] Connection refused",
        (run, "--url", url): f"--url {url}/model: status 401, ",
        (run, "--url", "here"): "--url here: unknown url type",
        (run, "--url", url, "--token-file", tmp_path / "no"): "cannot be read (No such file or directory)",
        (run, "--url", url, "--token-file", tmp_path / "empty"): "expected a token",
    }.items():
        done = command(*arguments, "--data", tmp_path / "never-read", "--out", tmp_path / "out")
        assert done.returncode == 2, done.stderr
        assert reason in done.stderr
        assert "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.long
def test_a_folder_that_cannot_be_made_is_known_before_images_are_read(run: Path, photos: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for out, code, reason in (
        (tmp_path, 2, f"--out {tmp_path}: expected a folder that does not exist yet"),
        (tmp_path / "file" / "out", 6, "cannot be made (Not a directory); --out names another place"),
    ):
        done = command(run, "--data", photos, "--out", out)
        assert done.returncode == code, done.stderr
        assert reason in done.stderr
        assert "images  " not in done.stdout, "nothing was read"


@pytest.mark.slow
def test_a_service_of_another_version_is_refused(run: Path, url: str, tmp_path: Path) -> None:
    path = rewritten(run / "model.onnx", tmp_path / "m.onnx", lambda graph, card: card | {"version": "another"})
    (tmp_path / "token").write_text(TOKEN)
    done = command(path, "--url", url, "--token-file", tmp_path / "token", "--data", tmp_path / "never-read")
    assert done.returncode == 2
    assert "serves version " in done.stderr
    assert ", the file is version another" in done.stderr
