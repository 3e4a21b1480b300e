"""What a user may give to --model and --weights that cannot be trained with: one sentence, the exit code, no trace."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from tests.support.pickles import Canary
from tests.support.trainer import command
from training.__main__ import main
from training.models import backbones

SMALL = ["--image-size", "32", "--epochs", "1", "--batch-size", "16", "--workers", "0"]
MODEL = "mobilenetv3_small_100"


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with files of weights, of which none fits."""
    folder = tmp_path_factory.mktemp("weights")
    state = backbones.timm().create_model("resnet18", num_classes=3).state_dict()
    torch.save(state, folder / "other.pth")
    save_file(state, folder / "whole.safetensors")
    content = (folder / "whole.safetensors").read_bytes()
    (folder / "cut.safetensors").write_bytes(content[: len(content) // 2])
    content = (folder / "other.pth").read_bytes()
    (folder / "cut.pth").write_bytes(content[: len(content) // 2])
    torch.save(Canary(folder / "executed"), folder / "code.pth")
    (folder / "folder.pth").mkdir()
    return folder


@pytest.mark.parametrize(
    ("given", "code", "said"),
    [
        (
            ["--model", "mobilenetv33"],
            2,
            "--model: expected auto, mlp, cnn or an architecture of timm, got mobilenetv33",
        ),
        (["--model", "a/b"], 2, "--model: expected auto, mlp, cnn or an architecture of timm, got a/b"),
        (["--model", ""], 2, "--model: expected auto, mlp, cnn or an architecture of timm, got "),
        (["--model", "efficientformer_l1", "--weights", "none"], 2, "efficientformer_l1 takes images of 224 px alone"),
        (["--model", "inception_v3", "--weights", "none"], 2, "inception_v3: takes no images of 32 px"),
        (["--model", "vgg11", "--weights", "none", "--drop-path", "0.1"], 2, "--model vgg11: cannot be made with"),
        (["--model", MODEL, "--weights", "{}/absent.pth"], 7, "absent.pth: there is no such file"),
        (["--model", MODEL, "--weights", "{}/folder.pth"], 7, "folder.pth: there is no such file"),
        (["--model", MODEL, "--weights", "{}/other.pth"], 7, f"other.pth does not fit {MODEL}: Missing key"),
        (["--model", MODEL, "--weights", "{}/cut.pth"], 7, "cut.pth: cut off, or not a file of tensors alone"),
        (
            ["--model", MODEL, "--weights", "{}/cut.safetensors"],
            7,
            "cut.safetensors: cut off, or not a file of tensors",
        ),
        (["--model", MODEL, "--weights", "{}/code.pth"], 7, "code.pth: cut off, or not a file of tensors alone"),
    ],
)
def test_one_sentence_says_what_cannot_be_trained_with(
    photos: Path,
    tmp_path: Path,
    files: Path,
    capsys: pytest.CaptureFixture[str],
    given: list[str],
    code: int,
    said: str,
) -> None:
    arguments = ["--data", str(photos), "--out", str(tmp_path), "--name", "x", *SMALL]
    assert main([*arguments, *(each.format(files) for each in given)]) == code
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert said in error
    assert len(error.splitlines()) == 1
    assert len(error) < 1500
    assert not (tmp_path / "x").exists(), "the name is free again"
    assert not (files / "executed").exists()


def test_a_pickle_that_runs_code_is_refused_by_the_command(photos: Path, tmp_path: Path, files: Path) -> None:
    done = command("--data", photos, "--out", tmp_path, "--model", MODEL, "--weights", files / "code.pth", *SMALL)
    assert done.returncode == 7
    assert "Traceback" not in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (files / "executed").exists()


@pytest.mark.long
def test_two_classes_of_gray_images(tmp_path: Path) -> None:
    """An array of gray pictures, trained by the command as gray and as colour."""
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1], 40)
    np.savez(
        tmp_path / "data.npz", train_images=rng.integers(0, 256, (80, 32, 32), dtype=np.uint8), train_labels=labels
    )
    for channels in ("1", "3"):
        options = ["--out", tmp_path, "--name", channels, "--channels", channels, "--model", MODEL, "--weights", "none"]
        done = command("--data", tmp_path / "data.npz", *options, *SMALL)
        assert done.returncode == 0, done.stderr
        assert "2 classes" in done.stdout
        assert f"images of 32 x 32 x {channels}" in done.stdout
        assert "Parity held" in done.stdout
