"""The command as a user runs it: every image is answered once, by a model that has not seen it."""

import csv
import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from tests.support.paths import ROOT
from tests.support.processes import PATIENCE_S, wait_until
from tests.support.trainer import command
from training.__main__ import main
from training.engine import runs
from training.errors import ConfigError
from training.folds.command import fold_failure, job, prepare_folds
from training.folds.config import FoldsConfig
from training.folds.gaps import OPTIONS as KEPT
from training.options.config import TrainConfig
from training.options.config_file import from_yaml
from training.process_pool import TrainingJob
from training.promotion.log import LOG

OPTIONS = ["--model", "mlp", "--hidden", "16", "--image-size", "16", "--epochs", "1", "--workers", "0"]


def arguments(photos: Path, out: Path, *options: str) -> list[str]:
    return ["folds", "--data", str(photos), "--out", str(out), "--folds", "3", "--name", "x", *OPTIONS, *options]


@pytest.fixture(scope="module")
def made(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("folds")
    done = command(*arguments(photos, out))
    assert done.returncode == 0, done.stderr
    assert "3 trainings, 3 to make" in done.stdout
    assert "balanced accuracy" in done.stdout
    return out


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.long
def test_every_image_is_answered_once_by_a_model_that_has_not_seen_it(made: Path, photos: Path) -> None:
    folder = made / "folds" / "x"
    answers = {row["path"]: row for row in rows(folder / "predictions.csv")}
    assert answers.keys() == {str(path.relative_to(photos)) for path in photos.rglob("*") if path.is_file()}
    seen: set[str] = set()
    for run in sorted((folder / "runs").glob("*-of-3")):
        own = rows(run / "predictions.csv")
        assert not seen & {row["path"] for row in own}
        seen |= {row["path"] for row in own}
        for row in own:
            assert answers[row["path"]] == row
        assert {row["true"] for row in own} == {"Red rash", "blue", "green leaf"}
    assert seen == answers.keys()
    facts = json.loads((folder / "folds.json").read_text())
    assert (facts["answered"], len(facts["folds"])) == (90, 3)
    assert facts["pooled"]["accuracy"] == pytest.approx(
        sum(row["true"] == row["predicted"] for row in answers.values()) / 90
    )
    assert facts["means"]["accuracy"]["interval"][0] <= facts["means"]["accuracy"]["mean"]
    assert facts["issues"]["count"] == len(rows(folder / "label-issues.csv"))
    assert "label-issues.csv" in (folder / "folds.html").read_text()
    assert not (folder / "runs" / runs.LATEST).exists(), "no fold is served"


@pytest.mark.long
def test_the_same_command_makes_what_is_missing_and_no_other_options(made: Path, photos: Path) -> None:
    folder = made / "folds" / "x"
    before = (folder / "predictions.csv").read_bytes()
    shutil.rmtree(folder / "runs" / "2-of-3")
    done = command(*arguments(photos, made))
    assert done.returncode == 0, done.stderr
    assert "3 trainings, 1 to make" in done.stdout
    assert (folder / "predictions.csv").read_bytes() == before, "the same training gives the same answers"
    other = command(*arguments(photos, made, "--seed", "1"))
    assert other.returncode == 2
    assert "holds folds of other options: seed was 0, now it is 1" in other.stderr
    assert "--from-folds" not in other.stderr


def test_options_that_change_no_fold_continue_finished_ones(tmp_path: Path) -> None:
    begun = FoldsConfig(folds=3, operate=("blue:sensitivity=0.9",))
    prepare_folds(tmp_path, begun)
    prepare_folds(
        tmp_path, replace(begun, device="cpu", worker_timeout=5.0, promote="always", cache=tmp_path / "cache")
    )
    changed = replace(begun, final=True, floor=("accuracy=0.5",), margin=0.1, workers=2)
    prepare_folds(tmp_path, changed)
    kept = yaml.safe_load((tmp_path / KEPT).read_text())
    assert (kept["workers"], kept["margin"]) == (2, 0.1), "what forget --retrain makes them again by"
    given = from_yaml(job(tmp_path / "runs" / "1-of-3", "1/3", changed).log.with_suffix(".yaml"))
    assert (given.floor, given.margin) == ((), TrainConfig.margin), "a fold that was stopped before continues, too"
    with pytest.raises(
        ConfigError, match=r"was all, now it is class; operate was .*\. --name puts .*, and `train --from"
    ):
        prepare_folds(tmp_path, replace(begun, operate=(), sets="class"))
    with pytest.raises(ConfigError, match=r"sets was all, now it is class.* puts these elsewhere$"):
        prepare_folds(tmp_path, replace(begun, sets="class", epochs=3))


def test_what_makes_no_folds_costs_no_training(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*arguments(photos, tmp_path), "--folds", "40"]) == 3
    assert "groups cannot be in 40 folds, at most in 30" in capsys.readouterr().err
    assert not list(tmp_path.rglob("model.onnx"))


@pytest.mark.parametrize(
    ("option", "code", "expected"),
    [
        (["--floor", "accurcy=0.9"], 2, "--floor accurcy=0.9: expected NAME=VALUE"),
        (["--floor", "sensitivity:bleu=0.9"], 2, "there is no class 'bleu'; there are Red rash, blue, green leaf"),
        ([], 2, "latest is no link"),
        ([], 6, "promotions.jsonl"),
    ],
)
def test_what_the_final_model_cannot_keep_is_refused_before_the_images_are_read(
    option: list[str], code: int, expected: str, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if not option:
        (tmp_path / ("latest" if code == 2 else LOG)).mkdir()
    assert main([*arguments(photos, tmp_path), "--final", *option]) == code
    assert expected in capsys.readouterr().err
    assert not list(tmp_path.glob(".cache/contents-*"))
    assert not (tmp_path / "folds").exists()


@pytest.mark.long
def test_a_fold_that_fails_gives_its_exit_code_and_reason(photos: Path, tmp_path: Path) -> None:
    done = command(*arguments(photos, tmp_path, "--lr", "1e30", "--jobs", "1"))
    assert done.returncode == 4
    assert "fold 1-of-3 failed with exit code 4" in done.stderr
    assert "a lower --lr" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("output", "code", "expected_code", "reason"),
    [
        ("error: cuDNN error\nthe GPU or its driver failed\n--resume x continues\n", 5, 5, "cuDNN error\nthe GPU or"),
        ("error: of a run before\n", -9, 137, "killed by SIGKILL"),
        ("error: of a run before\nstopped by SIGTERM; --resume x continues\n", 143, 143, "stopped by SIGTERM"),
        ("error: of a run before\nTraceback (most recent call last):\nKeyError: 1\n", 1, 1, "KeyError: 1"),
    ],
)
def test_a_fold_s_error_has_its_own_exit_code_and_its_own_words(
    output: str, code: int, expected_code: int, reason: str, tmp_path: Path
) -> None:
    fold = TrainingJob(name="1-of-3", arguments=[], log=tmp_path / "1-of-3.log")
    fold.log.write_text(output)
    error = fold_failure(fold, code, "the 1 of 3 that failed")
    assert error.exit_code == expected_code
    assert f"failed with exit code {expected_code} ({fold.log}); the same command" in str(error)
    assert str(error).partition("\n")[2].startswith(reason)
    assert "--resume" not in str(error)


@pytest.mark.slow
def test_folds_that_are_stopped_say_what_continues_them(photos: Path, tmp_path: Path) -> None:
    words = [sys.executable, "-m", "training", *arguments(photos, tmp_path, "--epochs", "1000", "--jobs", "1")]
    process = subprocess.Popen(words, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    wait_until(lambda: bool([*tmp_path.glob("folds/x/runs/*/checkpoints/last.pt")]), 200)
    process.terminate()
    _, errors = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 143
    assert "stopped by SIGTERM; the same command makes what is missing\n" in errors


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"folds": 1}, "--folds: expected 2 or more, got 1"),
        ({"folds": 3, "leave_out": "site"}, "--folds: expected none beside --leave-out"),
        ({"fold": "1/2"}, "--fold: expected none, as all folds are made"),
        ({"resume": "auto"}, "--resume: expected none, as the same command continues"),
        ({"threads": 0}, "--threads: expected 1 or more"),
        ({"epochs": 0}, "--epochs: expected"),
    ],
)
def test_options_that_cannot_be_followed_are_refused(given: dict[str, object], expected: str) -> None:
    with pytest.raises(ConfigError, match=expected):
        FoldsConfig(**given)  # type: ignore[arg-type]
