"""What `forget` makes of folds, studies and images in an array: all are listed, and made again without the images."""

import contextlib
import json
from pathlib import Path

import numpy as np
import pytest
import yaml

from tests.support.patients import NAMES, PERSON, write
from training.__main__ import main
from training.report.predictions import keys_in

pytestmark = pytest.mark.long  # trainings in processes of their own

SMALL = ["--model", "mlp", "--hidden", "8", "--image-size", "16", "--epochs", "1", "--seed", "1"]


def test_folds_with_their_final_run_and_a_study_are_made_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with contextlib.chdir(tmp_path):
        write(Path("data"), copies=False)
        data = ["--data", "data/labels.csv"]
        folds = ["folds", *SMALL, *data, "--folds", "2", "--name", "f", "--final", "--promote", "always"]
        assert main(folds) == 0
        (tmp_path / "s.yaml").write_text(
            "base: {model: mlp, hidden: [8], image_size: 16, epochs: 1, leaks: warn}\n"
            "axes: {activation: [relu, tanh]}\nseeds: 1\n"
        )
        assert main(["study", "s.yaml", *data]) == 0
        capsys.readouterr()
        assert main(["forget", "--group", PERSON, *data]) == 0
        said = capsys.readouterr().out
        assert "folds    runs/folds/f: the weights of 1 of its 2 runs depend on them" in said, "one part tests them"
        assert "study    runs/studies/s: the weights of 2 of its 2 runs depend on them" in said
        assert "weights  runs/f-final: its weights depend on them" in said
        assert main(["forget", "--group", PERSON, *data, "--yes", "--retrain"]) == 0
        said = capsys.readouterr().out
        assert "folds    runs/folds/f has 1 of its 2 runs marked; delete it where nobody needs it; in its place" in said
        assert "\nabsent: yes\n" in said
        record = json.loads(Path("runs/forgotten.jsonl").read_text())
        assert record["retrained"] == {"f": "f-again", "f-final": "f-final-again", "s": "s-again"}
        answered = keys_in(Path("runs/folds/f-again/predictions.csv"))
        assert len(answered) == 36 - 9
        assert not answered & set(NAMES)
        options = yaml.safe_load(Path("runs/f-final-again/config.yaml").read_text())
        assert options["from_folds"] == "runs/folds/f-again"
        assert Path("runs/latest").resolve().name == "f-final-again"
        made = [*Path("runs/studies/s-again/runs").iterdir()]
        assert len(made) == 2
        assert not any(keys_in(run / "predictions.csv") & set(NAMES) for run in made)
        assert main(folds) == 2
        assert "the weights of 1 of its runs depend on images that were forgotten" in capsys.readouterr().err


def test_images_in_an_array_are_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rng = np.random.default_rng(0)
    labels = np.arange(60) % 2
    images = (rng.integers(0, 120, (60, 16, 16)) + 100 * labels[:, None, None]).astype(np.uint8)
    with contextlib.chdir(tmp_path):
        np.savez("x.npz", train_images=images, train_labels=labels)
        run = ["--data", "x.npz", "--model", "mlp", "--hidden", "8", "--epochs", "1", "--name", "a"]
        assert main([*run, "--promote", "always"]) == 0
        before = Path("x.npz").read_bytes()
        arguments = ["forget", "--path", "x.npz#train/7", "--data", "x.npz", "--yes"]
        assert main([*arguments, "--delete-images"]) == 2
        assert "the images are no files of their own" in capsys.readouterr().err
        assert main([*arguments, "--retrain"]) == 0
        said = capsys.readouterr().out
        assert "1 image is left out, by the list of forgotten images" in said
        assert "data     x.npz still holds 1; who keeps it deletes them there" in said
        assert "\nabsent: yes\n" in said
        assert Path("x.npz").read_bytes() == before
        assert "59 images" in said
        assert main(arguments) == 0
        assert "holds    " not in capsys.readouterr().out
