"""The final model: trained on all images, with what the folds' answers say of scores and calibration."""

import json
import shutil
from pathlib import Path
from statistics import median

import albumentations as A
import numpy as np
import pytest
from scipy.special import log_softmax, softmax

from serving.contract.card.decisions import Calibration
from serving.contract.model import open_model
from tests.support.trainer import command
from training.engine import history
from training.engine.runs import LATEST
from training.errors import ConfigError
from training.folds.config import FoldsConfig
from training.folds.final import logits_of, runs_of, statement
from training.metrics.calibration import corrected
from training.options.config import TrainConfig

OPTIONS = ["--model", "mlp", "--hidden", "16", "--image-size", "16", "--epochs", "3", "--workers", "0"]


@pytest.fixture(scope="module")
def out(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three folds with a final model, which `latest` points to."""
    out = tmp_path_factory.mktemp("final") / "runs"
    done = command("folds", "--data", photos, "--out", out, "--folds", "3", "--name", "x", "--final", *OPTIONS)
    assert done.returncode == 0, done.stderr
    assert f"final  {out / 'x-final'}: one training more, on all images" in done.stdout
    return out


@pytest.mark.long
def test_scores_and_calibration_are_the_folds_and_the_report_says_so(out: Path) -> None:
    run = out / "x-final"
    card, folds = open_model(run / "model.onnx").card, json.loads((out / "folds" / "x" / "folds.json").read_text())
    assert card.statement is not None
    assert card.statement.startswith("Scores: from 3 folds.")
    assert card.scores["accuracy"].value == pytest.approx(folds["pooled"]["accuracy"])
    assert card.scores["log_loss"].value == pytest.approx(folds["pooled"]["log_loss"], abs=1e-4)
    report = json.loads((run / "report" / "report.json").read_text())
    assert report["statement"] == card.statement
    assert [each["train"] for each in report["data"]["classes"]] == [30, 30, 30]
    assert report["parity"] == report["parity"] | {"held": True, "images": 90}
    page = (run / "report" / "report.html").read_text().split("<h2>")[0]
    assert card.statement.replace("'", "&#39;") in page
    assert "held-out test images" not in page
    assert card.statement in (run / "report" / "report.md").read_text()
    assert card.calibration.threshold is not None
    assert report["calibration"]["prediction_sets"]["coverage"] == pytest.approx(0.9, abs=0.1)


@pytest.mark.long
def test_it_stops_at_the_median_of_the_folds_best_epochs(out: Path) -> None:
    records = [history.read(run) for run in runs_of(out / "folds" / "x")]
    best = round(median(max(line.epoch for line in record.epochs if line.best) for record in records if record))
    own = history.read(out / "x-final")
    assert own is not None
    assert len(own.epochs) == best
    assert own.epochs[-1].best


@pytest.mark.long
def test_it_replaces_no_model_that_is_served_unless_asked_to(out: Path, photos: Path) -> None:
    assert (out / LATEST).resolve() == (out / "x-final").resolve(), "nothing was served, and its floors hold"
    folds = out / "folds" / "x"
    given = ["--data", photos, "--out", out, *OPTIONS, "--from-folds", folds]
    again = command(*given, "--name", "again")
    assert again.returncode == 0, again.stderr
    assert "no image is left to compare the new model itself on; --promote always moves `latest` to it" in again.stdout
    assert (out / LATEST).resolve() == (out / "x-final").resolve()
    by_hand = command("promote", out / "again")
    assert by_hand.returncode == 1
    assert "its own answers are to images that it has learned" in by_hand.stderr
    always = command(*given, "--name", "always", "--promote", "always")
    assert always.returncode == 0, always.stderr
    assert (out / LATEST).resolve() == (out / "always").resolve()


@pytest.mark.long
def test_the_name_of_another_run_and_folds_without_a_run_are_refused_at_once(out: Path, photos: Path) -> None:
    (out / "y-final").mkdir()
    shutil.copy(out / "x-final" / "config.yaml", out / "y-final")
    made = ["folds", "--data", photos, "--out", out, "--folds", "3", "--name", "y", "--final", *OPTIONS]
    done = command(*made)
    assert done.returncode == 2
    assert f"{out / 'y-final'}: the final model has this name, and it is that of the folds in" in done.stderr
    assert not (out / "folds" / "y").exists()
    shutil.rmtree(out / "y-final")
    (out / "y-final").mkdir()
    (out / "y-final" / "notes.txt").touch()
    refused = command(*made)
    assert refused.returncode == 2
    assert "notes.txt is there and would be written over" in refused.stderr
    assert (out / "y-final" / "notes.txt").exists()
    copy = shutil.copytree(out / "folds" / "x", out / "folds" / "z")
    shutil.rmtree(copy / "runs" / "2-of-3")
    less = command("--data", photos, "--out", out, *OPTIONS, "--from-folds", copy)
    assert less.returncode == 2
    assert "2-of-3 is missing; the command that made the folds makes it again" in less.stderr


@pytest.mark.long
def test_robustness_says_that_no_image_is_left_that_it_has_not_learned_from(out: Path, photos: Path) -> None:
    done = command("robustness", out / "x-final", "--data", photos, "--out", out / "robustness")
    assert done.returncode == 0, done.stderr
    sentence = "was trained, chosen or calibrated on 90 of these 90 images: its scores here do not apply to new images."
    assert done.stdout.count(sentence) == 2, "before the images are changed, and at the end"
    assert sentence in json.loads((out / "robustness" / "robustness.json").read_text())["warnings"][0]


@pytest.mark.long
def test_folds_of_other_options_or_images_are_refused(out: Path, photos: Path, tmp_path: Path) -> None:
    folds = out / "folds" / "x"
    other = command("--data", photos, "--out", tmp_path, *OPTIONS, "--from-folds", folds, "--lr", "0.5")
    assert other.returncode == 2
    assert "its model is of other options: lr was 0.001, here it is 0.5" in other.stderr
    fewer = shutil.copytree(photos, tmp_path / "fewer")
    next(path for path in fewer.rglob("*.png")).unlink()
    less = command("--data", fewer, "--out", tmp_path / "runs", *OPTIONS, "--from-folds", folds)
    assert less.returncode == 3
    assert "its answers are to other images than the data has now" in less.stderr
    changed = shutil.copytree(photos, tmp_path / "changed")
    first, second = sorted((changed / "blue").glob("*.png"))[:2]
    shutil.copy(first, second)
    other = command("--data", changed, "--out", tmp_path / "runs", *OPTIONS, "--from-folds", folds)
    assert other.returncode == 3
    assert "1-of-3: images or labels have changed since it was trained" in other.stderr


@pytest.mark.long
def test_folds_with_files_in_eight_bits_make_a_final_model_without(out: Path, photos: Path, tmp_path: Path) -> None:
    """Where no image is left to score such a file."""
    folds = shutil.copytree(out / "folds" / "x", tmp_path / "x")
    for path in folds.rglob("config.yaml"):
        text = path.read_text()
        assert "quantize: none\nint8_agreement: 0.99\n" in text
        path.write_text(text.replace("quantize: none\nint8_agreement: 0.99", "quantize: int8\nint8_agreement: 0.5"))
    done = command("--data", photos, "--out", tmp_path / "runs", *OPTIONS, "--from-folds", folds, "--name", "final")
    assert done.returncode == 0, done.stderr


@pytest.mark.long
def test_files_of_costs_and_augmentation_reach_folds_and_final_model(photos: Path, tmp_path: Path) -> None:
    own, matrix, folds = tmp_path / "own.yaml", tmp_path / "matrix.csv", tmp_path / "folds" / "x"
    A.save(A.Compose([A.HorizontalFlip(p=0.5)]), own, data_format="yaml")
    matrix.write_text(",Red rash,blue,green leaf\nRed rash,0,5,5\nblue,1,0,1\ngreen leaf,1,1,0\n")
    given = ["--data", photos, "--out", tmp_path, *OPTIONS, "--epochs", "1", "--augment", own]
    made = command("folds", *given, "--costs", matrix, "--folds", "3", "--name", "x", "--final")
    assert made.returncode == 0, made.stderr
    assert open_model(tmp_path / "x-final" / "model.onnx").card.costs is not None
    matrix.write_text(matrix.read_text().replace("5", "4"))
    dearer = command(*given, "--from-folds", folds, "--costs", matrix, "--name", "dearer", "--promote", "never")
    assert dearer.returncode == 0, "costs change no answer of the folds"
    A.save(A.Compose([A.VerticalFlip(p=0.5)]), own, data_format="yaml")
    other = command(*given, "--from-folds", folds, "--name", "other")
    assert other.returncode == 2
    assert "its model is of other options: augment was" in other.stderr
    word = command(*given, "--augment", "light", "--from-folds", folds, "--name", "word")
    assert word.returncode == 2
    assert "/augment.yaml, here it is light; augment_on was workers, here it is device" in word.stderr


def test_logits_come_back_up_to_a_constant() -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 5, (50, 4)).astype(np.float32)
    fitted = Calibration(temperature=1.7, level=0.9, threshold=None, bias=(0.0, 1.0, -0.5, 2.0))
    found = logits_of(softmax(corrected(logits, fitted), axis=1), fitted)
    assert np.allclose(log_softmax(found, axis=1), log_softmax(logits, axis=1), atol=1e-4)


def test_a_model_of_its_own_scores_has_no_statement_and_folds_that_are_not_there_are_refused(tmp_path: Path) -> None:
    assert statement(TrainConfig()) is None
    with pytest.raises(ConfigError, match="expected the folder of finished folds"):
        statement(TrainConfig(from_folds=tmp_path))


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"final": True, "quantize": "int8"}, "--quantize: expected none beside --final"),
        ({"final": True, "images_per_class": 5}, "--images-per-class: expected none beside --final"),
        ({"floor": ("accuracy=0.5",)}, "--floor: expected none without --final"),
    ],
)
def test_what_a_final_model_cannot_be_is_refused(given: dict[str, object], expected: str) -> None:
    with pytest.raises(ConfigError, match=expected):
        FoldsConfig(**given)  # type: ignore[arg-type]
