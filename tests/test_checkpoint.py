import pickle
from pathlib import Path

import pytest
import torch

from training import checkpoint


def test_what_was_saved_is_loaded_with_weights_only(tmp_path: Path) -> None:
    state = {"model": {"weight": torch.arange(6.0).reshape(2, 3)}, "epoch": 3}
    checkpoint.save(state, tmp_path / "a.pt")
    loaded = checkpoint.load(tmp_path / "a.pt", torch.device("cpu"))
    assert loaded["epoch"] == 3
    assert torch.equal(loaded["model"]["weight"], state["model"]["weight"])


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    checkpoint.save({"epoch": 1}, path)

    def fail(file) -> None:
        file.write(b"half of it")
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        checkpoint.write_atomically(path, fail)
    assert checkpoint.load(path, torch.device("cpu")) == {"epoch": 1}
    assert list(tmp_path.iterdir()) == [path]


class Canary:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return (Path.touch, (self.path,))


def test_a_hostile_pickle_is_not_executed(tmp_path: Path) -> None:
    torch.save({"model": Canary(tmp_path / "canary")}, tmp_path / "evil.pt")
    with pytest.raises(pickle.UnpicklingError):
        checkpoint.load(tmp_path / "evil.pt", torch.device("cpu"))
    assert not (tmp_path / "canary").exists()


def test_the_checkpoints_of_a_run_load_with_weights_only(run: Path) -> None:
    for name in ("last", "best"):
        state = checkpoint.load(run / "checkpoints" / f"{name}.pt", torch.device("cpu"))
        assert set(state) == {"model", "optimizer", "schedule", "epoch"}
