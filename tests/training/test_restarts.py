"""A trainer that goes on by itself: real processes, killed for real."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.conftest import ROOT
from tests.training.engine.test_runs import last, same, start
from tests.training.test_failures import PATIENCE_S, children, is_gone, run_of, told, wait_until, workers_of

LEVERS = ["--epochs", "24", "--augment", "strong", "--ema", "0.9", "--dropout", "0.3", "--mixup", "0.4"]


def arguments(photos: Path, out: Path, *more: str, restarts: int = 1) -> list[str]:
    return [*told(photos, out, "--workers", "0", "--max-restarts", str(restarts)), *more]


def watched(arguments: list[str]) -> "subprocess.Popen[str]":
    """The process that watches, before it has printed anything."""
    command = [sys.executable, "-m", "training", *arguments]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def trainer_of(watcher: "subprocess.Popen[str]") -> int:
    """The one that trains, as soon as it is there."""
    wait_until(lambda: bool(workers_of(watcher)))
    [trainer] = workers_of(watcher)
    return trainer


def kill(watcher: "subprocess.Popen[str]") -> None:
    trainer = trainer_of(watcher)
    os.kill(trainer, signal.SIGKILL)
    wait_until(lambda: trainer not in workers_of(watcher))


def test_killed_at_its_start_and_in_the_middle_it_ends_as_if_it_had_not_been(photos: Path, tmp_path: Path) -> None:
    whole = run_of(arguments(photos, tmp_path / "whole", *LEVERS, restarts=0))
    assert whole.returncode == 0, whole.stderr
    watcher = watched(arguments(photos, tmp_path, *LEVERS, restarts=2))
    kill(watcher)
    assert watcher.stdout is not None
    assert any(line.startswith("epoch  2/24") for line in watcher.stdout)
    kill(watcher)
    printed, errors = watcher.communicate(timeout=PATIENCE_S)
    assert watcher.returncode == 0, errors
    for left in (1, 0):
        assert f"{tmp_path}/x: the process that trained was killed by SIGKILL; another goes on ({left} left)" in errors
    assert f"resume {tmp_path}/x: epoch " in printed
    assert same(last(tmp_path / "x"), last(tmp_path / "whole" / "x"))
    assert (tmp_path / "latest").resolve() == tmp_path / "x"


def test_killed_once_too_often_it_says_how_to_go_on(photos: Path, tmp_path: Path) -> None:
    watcher = start(arguments(photos, tmp_path))
    for _ in range(2):
        kill(watcher)
    _, errors = watcher.communicate(timeout=PATIENCE_S)
    assert watcher.returncode == 137
    assert errors.endswith("stopped by SIGKILL; a run goes on with --resume and its folder, or --resume auto\n")
    assert "Traceback" not in errors


def test_a_lost_worker_is_no_end_but_a_mistake_is(photos: Path, tmp_path: Path) -> None:
    watcher = start(arguments(photos, tmp_path, "--workers", "1"))
    trainer = trainer_of(watcher)
    [worker] = children(trainer)
    os.kill(worker, signal.SIGKILL)
    wait_until(lambda: trainer not in workers_of(watcher))
    watcher.terminate()
    _, errors = watcher.communicate(timeout=PATIENCE_S)
    assert watcher.returncode == 143
    assert "error: a data worker was killed" in errors
    assert "the process that trained ended with 6; another goes on (0 left)" in errors
    mistaken = run_of(arguments(photos, tmp_path, "--name", "y", "--augment", str(tmp_path / "none.yaml")))
    assert mistaken.returncode == 2
    assert "another goes on" not in mistaken.stderr


def test_asked_to_stop_it_saves_and_is_not_replaced(photos: Path, tmp_path: Path) -> None:
    for sent, code in ((signal.SIGTERM, 143), (signal.SIGINT, 130)):
        watcher = start(arguments(photos, tmp_path, "--resume", "auto"))
        os.killpg(watcher.pid, sent)  # as Ctrl-C does: to everybody in the group
        _, errors = watcher.communicate(timeout=25)
        assert watcher.returncode == code
        assert errors.count("stopped by") == 1
        assert "another goes on" not in errors
    assert len(last(tmp_path / "x")["progress"]["history"]) >= 2


def test_it_ends_with_the_one_that_watches(photos: Path, tmp_path: Path) -> None:
    watcher = start(arguments(photos, tmp_path))
    trainer = trainer_of(watcher)
    watcher.kill()
    wait_until(lambda: is_gone(trainer))
    watcher.communicate()
    assert last(tmp_path / "x")["progress"]["history"]


def test_the_one_that_watches_asks_nothing_of_a_gpu(tmp_path: Path) -> None:
    """A process forked from one that has could not use it."""
    code = """
import sys, torch
def forbidden(*_): raise AssertionError("asked")
torch.cuda.is_available = torch.cuda.device_count = torch.cuda.init = forbidden
from training import __main__
__main__.train = lambda *_: sys.exit(3)
__main__.main(sys.argv[1:])
"""
    command = [sys.executable, "-c", code, "--max-restarts", "1", "--out", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=PATIENCE_S)
    assert done.returncode == 3, done.stderr


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
def test_killed_on_a_gpu_it_goes_on(photos: Path, tmp_path: Path) -> None:
    watcher = start(arguments(photos, tmp_path, "--device", "cuda", "--epochs", "60"))
    kill(watcher)
    printed, errors = watcher.communicate(timeout=PATIENCE_S)
    assert watcher.returncode == 0, errors
    assert f"resume {tmp_path}/x: epoch " in printed
