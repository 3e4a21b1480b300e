import csv
import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest

from serving.contract.decode import as_channels
from serving.contract.model import ModelRefused, open_model
from tests.support.datasets import manifest
from tests.support.trainer import command
from training import evaluate
from training.__main__ import main
from training.data import selection
from training.data.cache import Cache
from training.data.formats import find_source
from training.data.selection import gather_images
from training.engine import runs
from training.errors import ConfigError, DataError
from training.evaluate import EvaluateConfig
from training.models import prediction
from training.options.config import TrainConfig
from training.train import train


@pytest.fixture(scope="module")
def gray(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A weaker model of the same images: smaller, gray, hardly trained, and on other splits."""
    out = tmp_path_factory.mktemp("gray")
    return train(
        TrainConfig(
            data=photos,
            out=out,
            name="gray",
            seed=1,
            val_fraction=0.4,
            model="mlp",
            hidden=(8,),
            channels=1,
            image_size=16,
            epochs=1,
            lr=1e-4,
        )
    )


def evaluated(run: Path, data: Path | None, out: Path, **options: Any) -> dict[str, Any]:
    """What evaluation.json says; it must not hold a NaN."""

    def refuse(constant: str) -> NoReturn:
        raise AssertionError(constant)

    folder = evaluate.evaluate(EvaluateConfig(run=run, data=data, out=out, **options))
    return json.loads((folder / "evaluation.json").read_text(), parse_constant=refuse)


def predictions(path: Path) -> dict[str, dict[str, str]]:
    with path.open(newline="") as file:
        return {row["path"]: row for row in csv.DictReader(file)}


def test_a_run_on_its_own_data_is_what_its_report_says(run: Path, gray: Path, photos: Path, tmp_path: Path) -> None:
    for model in (run, gray):
        out = tmp_path / model.name
        found = evaluated(model, photos, out)
        reported = json.loads((model / "report" / "report.json").read_text())
        assert (out / "predictions.csv").read_bytes() == (model / "predictions.csv").read_bytes()
        assert found["intervals"] == reported["intervals"]
        assert found["calibration"]["prediction_sets"] == reported["calibration"]["prediction_sets"]
        for name, value in reported["scores"]["test"].items():
            # The report's probabilities are torch's, these are those of the exported file.
            assert found["scores"][name] == (pytest.approx(value, rel=1e-5) if isinstance(value, float) else value), (
                name
            )
        assert found["data"]["split"] == "test split"
        assert "splits were made again" in found["data"]["reason"]
        assert found["data"]["digest"] == found["model"]["trained_on"] == reported["data"]["digest"]
        assert found["warnings"] == []


def test_the_results_go_beside_the_model(run: Path, photos: Path) -> None:
    folder = evaluate.evaluate(EvaluateConfig(run=run / "model.onnx", data=photos))
    assert folder.parent == run / "evaluations"
    assert folder.name.endswith(f"-{photos.name}")
    assert {path.name for path in folder.iterdir()} == {"evaluation.json", "evaluation.html", "predictions.csv"}
    shutil.rmtree(folder.parent)


def test_the_predictions_are_those_of_the_service_in_any_batch(gray: Path, photos: Path) -> None:
    classifier = open_model(gray / "model.onnx")
    images, _ = gather_images(find_source(photos, Cache()), Cache(), [classifier.card])
    indices = np.array([3, 80, 41, 5, 17])
    served = [
        classifier.predict(classifier.card.preprocessing((photos / images.keys[i]).read_bytes())[None]) for i in indices
    ]
    assert np.allclose(
        prediction.predict_images(classifier, images, indices), np.concatenate(served), rtol=0, atol=1e-6
    )
    assert np.allclose(
        prediction.predict_images(classifier, images, indices, batch_size=2), np.concatenate(served), rtol=0, atol=1e-6
    )


def test_gray_by_way_of_colour_is_the_same_gray() -> None:
    every = np.arange(256, dtype=np.uint8).reshape(16, 16, 1)
    assert np.array_equal(as_channels(as_channels(every, 3), 1), every)


def test_other_data_is_scored_whole_and_a_class_it_lacks_has_no_score(
    run: Path, gray: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(photos, tmp_path / "other")
    shutil.rmtree(tmp_path / "other" / "blue")
    found = evaluated(run, tmp_path / "other", tmp_path / "x")
    assert found["scores"]["images"] == found["data"]["images"] == 60
    assert found["data"]["reason"] == "the data is not what the model was trained on and brings no test split"
    absent = found["scores"]["by_class"][1]
    assert absent == {"name": "blue", "support": 0, "precision": None, "recall": None, "f1": None}
    assert found["intervals"]["recall"]["blue"] is found["intervals"]["precision"]["blue"] is None
    assert found["scores"]["balanced_accuracy"] == 1.0
    sets = evaluated(gray, tmp_path / "other", tmp_path / "y")["calibration"]["prediction_sets"]
    assert sets["by_class"]["blue"] is None
    assert sets["by_class"]["green leaf"] > 0
    assert "warning: no image of blue" in capsys.readouterr().out


def test_one_image_of_one_class_is_enough(run: Path, photos: Path, tmp_path: Path) -> None:
    (tmp_path / "other" / "blue").mkdir(parents=True)
    shutil.copy(photos / "blue" / "0.png", tmp_path / "other" / "blue")
    found = evaluated(run, tmp_path / "other", tmp_path / "x")
    assert found["scores"]["accuracy"] == 1.0
    assert found["scores"]["roc_auc"] is found["intervals"]["roc_auc"] is None


@pytest.fixture
def labels(photos: Path, tmp_path: Path) -> Path:
    """The photos as a manifest that says of the first 30 that they are for the test."""
    paths = sorted(path for path in photos.rglob("*") if path.is_file())
    shutil.copytree(photos, tmp_path / "photos")
    rows = [
        {"path": f"photos/{path.relative_to(photos)}", "label": path.relative_to(photos).parts[0], "split": split}
        for path, split in zip(paths, ["test"] * 30 + ["train"] * 60, strict=True)
    ]
    return manifest(tmp_path / "labels.csv", rows)


@pytest.mark.slow
def test_a_test_split_that_the_data_brings_is_taken_and_others_on_request(
    run: Path, labels: Path, tmp_path: Path
) -> None:
    found = evaluated(run, labels, tmp_path / "x")
    assert (found["data"]["split"], found["data"]["reason"]) == ("test split", "the data brings it")
    assert (found["scores"]["images"], found["data"]["images"]) == (30, 90)
    assert evaluated(run, labels, tmp_path / "y", split="train")["scores"]["images"] == 60
    assert evaluated(run, labels, tmp_path / "z", split="all")["scores"]["images"] == 90
    with pytest.raises(ConfigError, match=r"--split val: .*labels\.csv brings no such split"):
        evaluated(run, labels, tmp_path / "val", split="val")
    assert not (tmp_path / "val").exists(), "the name is free again"


@pytest.mark.parametrize(("split", "images", "seen"), [("train", 60, 60), ("val", 18, 18), ("all", 90, 78)])
def test_images_that_the_model_was_trained_on_are_counted(
    run: Path, photos: Path, tmp_path: Path, split: str, images: int, seen: int
) -> None:
    found = evaluated(run, photos, tmp_path / "x", split=split)
    assert found["scores"]["images"] == images
    [warning] = found["warnings"]
    assert f"trained, chosen or calibrated on {seen} of these {images} images" in warning


@pytest.mark.slow
def test_the_same_image_twice_is_one_draw_and_the_unreadable_is_named(
    run: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for folder in photos.iterdir():
        for copy in ("a", "b"):
            shutil.copytree(folder, tmp_path / "twice" / folder.name / copy)
    (tmp_path / "twice" / "blue" / "broken.png").write_bytes(b"not an image")
    found = evaluated(run, tmp_path / "twice", tmp_path / "x")
    assert (found["scores"]["images"], found["data"]["components"]) == (180, 90)
    assert found["data"]["unreadable"].keys() == {"blue/broken.png"}
    assert "left out blue/broken.png" in capsys.readouterr().out
    alone = evaluated(run, photos, tmp_path / "y", split="all")
    assert found["intervals"]["accuracy"] == alone["intervals"]["accuracy"]
    for number in range(2):
        (tmp_path / "twice" / "blue" / f"{number}.png").write_bytes(b"not an image")
    with pytest.raises(DataError, match="3 of 183"):
        evaluated(run, tmp_path / "twice", tmp_path / "z")
    assert not (tmp_path / "z").exists()


def test_a_model_against_itself(run: Path, photos: Path, tmp_path: Path) -> None:
    found = evaluated(run, photos, tmp_path / "x", compare=run / "model.onnx", split="all")["comparison"]
    accuracy = found["differences"].pop("accuracy")
    assert (accuracy["value"], accuracy["better"]) == (0.0, None)
    assert accuracy["interval"][0] < 0 < accuracy["interval"][1], "Newcombe's"
    for difference in found["differences"].values():
        assert difference == {"value": 0.0, "interval": [0.0, 0.0], "better": None}
    assert (found["labels_differ"], found["disagreements"]) == (0, [])
    assert found["verdict"] == f"Both files hold the same weights, version {found['model']['version']}."


@pytest.mark.slow
def test_two_models_on_the_same_images_each_with_its_own_pixels(
    run: Path, gray: Path, photos: Path, tmp_path: Path
) -> None:
    found = evaluated(run, photos, tmp_path / "both", compare=gray)
    compared = found["comparison"]
    assert (found["model"]["channels"], compared["model"]["channels"]) == (3, 1)
    alone = evaluated(gray, photos, tmp_path / "alone", split="all")
    [warning] = found["warnings"]
    assert str(gray) in warning, "another seed: some of these test images trained it"
    a, b = predictions(tmp_path / "both" / "predictions.csv"), predictions(tmp_path / "alone" / "predictions.csv")
    assert alone["data"]["digest"] != found["data"]["digest"]
    differing = {path for path in a if a[path]["predicted"] != b[path]["predicted"]}
    assert {image["path"] for image in compared["disagreements"]} == differing
    assert len(differing) == compared["labels_differ"] == compared["only_a_right"] > 0
    for image in compared["disagreements"]:
        for letter, rows in (("A", a), ("B", b)):
            assert image[letter]["label"] == rows[image["path"]]["predicted"]
            assert image[letter]["confidence"] == pytest.approx(
                float(rows[image["path"]][image[letter]["label"]]), abs=2e-6
            )
    right = np.mean([b[path]["predicted"] == b[path]["true"] for path in a])
    assert compared["scores"]["accuracy"] == right
    assert compared["differences"]["accuracy"]["value"] == right - 1
    assert compared["differences"]["accuracy"]["better"] == "A"


@pytest.mark.long
def test_decisions_of_two_models_are_compared_for_the_classes_that_both_decide_for(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options: dict[str, Any] = {"model": "mlp", "hidden": (8,), "image_size": 12, "val_fraction": 0.3}
    demands = {"a": ("blue:sensitivity=0.9", "Red rash:precision=0.9"), "b": ("blue:specificity=0.8",)}
    a, b = (
        train(TrainConfig(data=photos, out=tmp_path, name=name, operate=asked, epochs=4, **options))
        for name, asked in demands.items()
    )
    arguments = ["--run", str(a), "--data", str(photos), "--compare", str(b), "--out", str(tmp_path / "e")]
    assert main(["evaluate", *arguments]) == 0
    facts = json.loads((tmp_path / "e" / "evaluation.json").read_text())
    [found] = facts["comparison"]["decisions"]
    assert (found["label"], [point["score"] for point in found["points"]]) == ("blue", ["sensitivity", "specificity"])
    own = json.loads((b / "report" / "report.json").read_text())["decisions"]["points"][0]["rates"]
    for name in ("sensitivity", "specificity"):
        assert found[name]["b"] == own[name]["value"]
        assert found[name]["value"] == pytest.approx(found[name]["b"] - found[name]["a"])
    assert found["sentence"] in capsys.readouterr().out
    assert "Their decisions for one class" in (tmp_path / "e" / "evaluation.html").read_text()


def test_an_order_of_classes_of_its_own_changes_nothing(run: Path, photos: Path) -> None:
    classifier = open_model(run / "model.onnx")
    images, _ = gather_images(find_source(photos, Cache()), Cache(), [classifier.card])
    turned = dataclasses.replace(images, image_set=dataclasses.replace(images.image_set, classes=images.classes[::-1]))
    indices = np.arange(9)
    assert np.array_equal(
        prediction.predict_images(classifier, turned, indices),
        prediction.predict_images(classifier, images, indices)[:, ::-1],
    )


def test_what_does_not_fit_together_is_refused_before_any_image_is_read(
    run: Path, photos: Path, tmp_path: Path
) -> None:
    (tmp_path / "taken").mkdir()
    with pytest.raises(ConfigError, match="does not exist yet"):
        evaluated(run, photos, tmp_path / "taken")
    with pytest.raises(
        DataError, match=r"does not know.*: 0 \(178\), 1 \(182\), .*; it knows Red rash, blue, green leaf"
    ):
        evaluated(run, None, tmp_path / "x")
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match=r"cannot be made \(Not a directory\); --out names another place"):
        evaluated(run, photos, tmp_path / "file" / "x")
    (tmp_path / "model.onnx").write_bytes(b"not a model")
    with pytest.raises(ModelRefused, match=r"model\.onnx: not a graph"):
        evaluated(tmp_path, photos, tmp_path / "x")
    other = open_model(run / "model.onnx")
    other.card = dataclasses.replace(other.card, classes=("Red rash", "blue", "grass"))
    with pytest.raises(ConfigError, match="only in --run: green leaf, only there: grass"):
        evaluate._check_classes([open_model(run / "model.onnx"), other])
    assert not (tmp_path / "x").exists()


def test_a_column_that_is_not_there_is_refused_before_any_image_is_read(
    run: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(selection, "gather_images", lambda *given: pytest.fail("the images were read"))
    with pytest.raises(ConfigError, match="--slices sit: "):
        evaluate.evaluate(EvaluateConfig(run=run, data=photos, out=tmp_path / "x", slices="sit"))


def test_the_command_line(run: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    done = command("evaluate", "--run", run, "--data", photos, "--compare", run, "--out", tmp_path / "x")
    assert done.returncode == 0, done.stderr
    assert "test split, 12 of 90" in done.stdout
    assert f"{tmp_path / 'x' / 'evaluation.html'}" in done.stdout
    arguments = ["evaluate", "--run", str(run), "--data", str(photos), "--out"]
    (tmp_path / "file").touch()
    assert main([*arguments, str(tmp_path / "x")]) == 2
    assert main([*arguments[:3], "--out", str(tmp_path / "y")]) == 3
    assert main([*arguments, str(tmp_path / "file" / "y")]) == 6
    assert main([*arguments, str(tmp_path / "y"), "--compare", str(photos)]) == 7
    assert "model.onnx: cannot be read (No such file or directory)" in capsys.readouterr().err


@pytest.mark.parametrize("written", [False, True])
def test_a_folder_without_results_is_left_to_the_next_attempt(tmp_path: Path, written: bool) -> None:
    def fail() -> None:
        with runs.results_folder(None, tmp_path / "new" / "out") as folder:
            if written:
                (folder / "evaluation.json").touch()
            raise DataError("none")

    with pytest.raises(DataError):
        fail()
    assert (tmp_path / "new" / "out").exists() == written
