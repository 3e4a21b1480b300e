import dataclasses
import errno
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import IO, Any, cast

import numpy as np
import pytest
import torch

from serving.contract.decode import Preprocessing
from tests.support.paths import ROOT
from tests.support.pickles import Canary
from training.engine import checkpoint
from training.errors import CheckpointRefused
from training.storage import write_atomically


def test_what_was_saved_is_loaded_with_weights_only(tmp_path: Path) -> None:
    state: dict[str, Any] = {"model": {"weight": torch.arange(6.0).reshape(2, 3)}, "epoch": 3}
    checkpoint.save(state, tmp_path / "a.pt")
    loaded = checkpoint.load(tmp_path / "a.pt", torch.device("cpu"))
    assert loaded["epoch"] == 3
    assert torch.equal(loaded["model"]["weight"], state["model"]["weight"])


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    checkpoint.save({"epoch": 1}, path)

    def fail(file: IO[bytes]) -> None:
        file.write(b"half of it")
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        write_atomically(path, fail)
    assert checkpoint.load(path, torch.device("cpu")) == {"epoch": 1}
    assert set(tmp_path.iterdir()) == {path, tmp_path / "a.pt.sha256"}


def test_a_hostile_pickle_is_not_executed(tmp_path: Path) -> None:
    checkpoint.save({"model": Canary(tmp_path / "canary")}, tmp_path / "evil.pt")
    with pytest.raises(CheckpointRefused, match=r"evil\.pt: not a checkpoint of tensors"):
        checkpoint.load(tmp_path / "evil.pt", torch.device("cpu"))
    assert not (tmp_path / "canary").exists()


def test_what_is_no_checkpoint_is_refused_by_name(run: Path, tmp_path: Path) -> None:
    (tmp_path / "empty.pt").touch()
    (tmp_path / "text.pt").write_text("weights")
    whole = (run / "checkpoints" / "best.pt").read_bytes()
    (tmp_path / "half.pt").write_bytes(whole[: len(whole) // 2])
    checkpoint.save(cast("Any", torch.zeros(3)), tmp_path / "tensor.pt")
    torch.save({"model": {}}, tmp_path / "foreign.pt")
    for name in ("empty", "text", "half", "tensor", "foreign", "absent"):
        with pytest.raises(CheckpointRefused, match=f"{name}.pt"):
            checkpoint.load(tmp_path / f"{name}.pt", torch.device("cpu"))


def test_the_checkpoints_of_a_run_say_what_they_are(run: Path) -> None:
    for name in ("last", "best"):
        state = checkpoint.load(run / "checkpoints" / f"{name}.pt", torch.device("cpu"))
        learned = {"model", "weights", "averaged_steps", "optimizer", "schedule", "scaler"}
        assert set(state) == learned | {"settings", "data", "progress"}
        settings = state["settings"]
        assert settings["model"] == {
            "model": "mlp",
            "hidden": [32],
            "activation": "relu",
            "batch_norm": False,
            "dropout": 0.0,
        }
        assert settings["classes"] == ["Red rash", "blue", "green leaf"]
        assert settings["preprocessing"] == dataclasses.asdict(
            Preprocessing(height=24, width=24, channels=3, interpolation="area")
        )
        assert settings["normalization"]["mode"] == "standard"


def test_any_reader_of_checkpoints_reads_ours(run: Path) -> None:
    path = run / "checkpoints" / "best.pt"
    state = torch.load(path, weights_only=True)
    assert state["settings"]["classes"] == ["Red rash", "blue", "green leaf"]
    done = subprocess.run(["sha256sum", "--check", f"{path.name}.sha256"], cwd=path.parent, check=False)
    assert done.returncode == 0


def test_a_checkpoint_without_its_digest_is_refused(run: Path, tmp_path: Path) -> None:
    """As a checkpoint from before version 0.2.0 is, which held the digest in itself."""
    shutil.copy(run / "checkpoints" / "best.pt", tmp_path)
    with pytest.raises(CheckpointRefused, match=r"expected its digest in best\.pt\.sha256.* before 0\.2\.0"):
        checkpoint.load(tmp_path / "best.pt", torch.device("cpu"))


def test_while_a_checkpoint_is_replaced_the_old_and_the_new_one_have_a_digest(tmp_path: Path) -> None:
    """A disk that is full when the new file is written: the sidecar has both digests, until the next save."""
    path = tmp_path / "a.pt"
    checkpoint.save({"epoch": 1}, path)
    (tmp_path / ".a.pt.partial").mkdir()
    with pytest.raises(OSError, match="Is a directory"):
        checkpoint.save({"epoch": 2}, path)
    assert checkpoint.load(path, torch.device("cpu")) == {"epoch": 1}
    assert len((tmp_path / "a.pt.sha256").read_text().splitlines()) == 2
    (tmp_path / ".a.pt.partial").rmdir()
    checkpoint.save({"epoch": 3}, path)
    assert checkpoint.load(path, torch.device("cpu")) == {"epoch": 3}
    assert len((tmp_path / "a.pt.sha256").read_text().splitlines()) == 1


def test_a_byte_that_changed_is_noticed_wherever_it_is(run: Path, tmp_path: Path) -> None:
    whole = (run / "checkpoints" / "best.pt").read_bytes()
    for place in np.random.default_rng(0).integers(0, len(whole), 40):
        damaged = bytearray(whole)
        damaged[place] ^= 1 << (place % 8)
        (tmp_path / "x.pt").write_bytes(damaged)
        shutil.copy(run / "checkpoints" / "best.pt.sha256", tmp_path / "x.pt.sha256")
        with pytest.raises(CheckpointRefused, match="its digest does not fit"):
            checkpoint.load(tmp_path / "x.pt", torch.device("cpu"))


@pytest.mark.parametrize("number", [errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS], ids=errno.errorcode.get)
def test_a_file_system_without_hard_links_keeps_the_previous_checkpoint_too(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "link", refuse)
    last, previous = tmp_path / "last.pt", tmp_path / "previous.pt"
    for epoch in range(1, 4):
        checkpoint.save({"epoch": epoch}, last, previous=previous)
    assert checkpoint.load(last, torch.device("cpu")) == {"epoch": 3}
    assert checkpoint.load(previous, torch.device("cpu")) == {"epoch": 2}
    assert {path.name for path in tmp_path.iterdir()} == {
        "last.pt",
        "last.pt.sha256",
        "previous.pt",
        "previous.pt.sha256",
    }


def test_another_fault_of_the_storage_is_no_reason_to_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "link", refuse)
    checkpoint.save({"epoch": 1}, tmp_path / "last.pt")
    with pytest.raises(OSError, match="Input/output error"):
        checkpoint.save({"epoch": 2}, tmp_path / "last.pt", previous=tmp_path / "previous.pt")
    assert checkpoint.load(tmp_path / "last.pt", torch.device("cpu")) == {"epoch": 1}


SAVING = """
import errno, os, sys
from pathlib import Path
import torch
from training.engine import checkpoint
folder, number = Path(sys.argv[1]), int(sys.argv[2])
if sys.argv[3] == "without hard links":
    def link(*_):
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")
    os.link = link
while True:
    state = {"number": number, "weight": torch.full((500_000,), float(number))}
    checkpoint.save(state, folder / "last.pt", previous=folder / "previous.pt")
    print(number, flush=True)
    number += 1
"""


@pytest.mark.long
@pytest.mark.parametrize("file_system", ["with hard links", "without hard links"])
def test_one_that_is_killed_at_any_moment_of_a_save_leaves_a_whole_checkpoint(file_system: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for first in range(0, 5000, 1000):
        saver = subprocess.Popen(
            [sys.executable, "-c", SAVING, str(tmp_path), str(first), file_system],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert saver.stdout is not None
        assert saver.stdout.readline() == f"{first}\n", "it saves"
        for _ in range(10):  # stopped at a random moment, looked at as a kill would leave it, and let go on
            time.sleep(rng.uniform(0, 0.05))
            saver.send_signal(signal.SIGSTOP)
            os.waitpid(saver.pid, os.WUNTRACED)
            state = checkpoint.load(tmp_path / "last.pt", torch.device("cpu"))
            assert bool((state["weight"] == state["number"]).all())
            saver.send_signal(signal.SIGCONT)
        saver.kill()
        saver.communicate()
        state = checkpoint.load(tmp_path / "last.pt", torch.device("cpu"))
        assert first <= state["number"] < first + 1000
        if (tmp_path / "previous.pt").exists():
            checkpoint.load(tmp_path / "previous.pt", torch.device("cpu"))


def test_a_second_name_keeps_its_content_when_the_first_gets_another(tmp_path: Path) -> None:
    best, last = tmp_path / "best.pt", tmp_path / "last.pt"
    checkpoint.keep(best, last)
    assert list(tmp_path.iterdir()) == []
    checkpoint.save({"epoch": 1}, best)
    checkpoint.keep(best, last)
    checkpoint.save({"epoch": 2}, last)
    loaded = [checkpoint.load(path, torch.device("cpu")) for path in (best, last)]
    assert loaded == [{"epoch": 1}, {"epoch": 2}]
