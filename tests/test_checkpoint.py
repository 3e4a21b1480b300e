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
    with pytest.raises(checkpoint.CheckpointRefused, match=r"evil\.pt: not a checkpoint of tensors"):
        checkpoint.load(tmp_path / "evil.pt", torch.device("cpu"))
    assert not (tmp_path / "canary").exists()


def test_what_is_no_checkpoint_is_refused_by_name(run: Path, tmp_path: Path) -> None:
    (tmp_path / "empty.pt").touch()
    (tmp_path / "text.pt").write_text("weights")
    whole = (run / "checkpoints" / "best.pt").read_bytes()
    (tmp_path / "half.pt").write_bytes(whole[: len(whole) // 2])
    torch.save(torch.zeros(3), tmp_path / "tensor.pt")
    for name in ("empty", "text", "half", "tensor", "absent"):
        with pytest.raises(checkpoint.CheckpointRefused, match=f"{name}.pt"):
            checkpoint.load(tmp_path / f"{name}.pt", torch.device("cpu"))


def test_the_checkpoints_of_a_run_say_what_they_are(run: Path) -> None:
    for name in ("last", "best"):
        state = checkpoint.load(run / "checkpoints" / f"{name}.pt", torch.device("cpu"))
        assert set(state) == {"model", "weights", "averaged_steps", "optimizer", "schedule", "settings", "epoch"}
        settings = state["settings"]
        assert settings["model"] == {
            "model": "mlp",
            "hidden": [32],
            "activation": "relu",
            "batch_norm": False,
            "dropout": 0.0,
        }
        assert settings["classes"] == ["Red rash", "blue", "green leaf"]
        assert settings["preprocessing"] == {"height": 24, "width": 24, "channels": 3, "interpolation": "area"}
        assert settings["normalization"]["mode"] == "standard"
