import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, cast

import pytest
import torch

from serving.contract.model import open_model
from tests.support.paths import ROOT
from training.engine import checkpoint, history
from training.errors import ConfigError
from training.options.config import TrainConfig
from training.study.command import merge, shard, study
from training.study.config import StudyConfig, declared
from training.study.folder import prepare_study
from training.study.spec import document

GRID = """
title: Which rate?
base: {model: mlp, hidden: [8], image_size: 16, epochs: 2, batch_size: 16}
axes:
  lr: [0.001, 1.0e+30]
  activation: [relu, tanh]
seeds: 1
questions:
  - {ask: "Is tanh better?", measure: val_score, axis: activation, compare: [tanh, relu], where: {lr: 0.001}}
"""


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-W", "error", "-m", "training", "study", *map(str, arguments)]


def run(*arguments: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    variables = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(
        command(*arguments), cwd=cwd, env=variables, capture_output=True, text=True, timeout=240, check=False
    )


@pytest.fixture(scope="module")
def finished(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder of a study with one run that fails and two that diverge, and what it printed."""
    home = tmp_path_factory.mktemp("study")
    (home / "rates.yaml").write_text(GRID)
    broken = home / "runs" / "studies" / "rates" / "runs" / "lr=0.001,activation=tanh,seed=0"
    broken.mkdir(parents=True)
    (broken / "config.yaml").write_text("epochs: many\n")
    done = run("rates.yaml", "--data", photos, cwd=home)
    assert done.returncode == 0, done.stdout + done.stderr
    return home / "runs" / "studies" / "rates", done.stdout


@pytest.mark.long
def test_a_run_that_fails_or_diverges_is_an_outcome_and_does_not_stop_the_others(finished: tuple[Path, str]) -> None:
    folder, printed = finished
    with (folder / "results.csv").open(newline="") as file:
        rows = {(row["lr"], row["activation"]): row for row in csv.DictReader(file)}
    assert {key: row["outcome"] for key, row in rows.items()} == {
        ("0.001", "relu"): "done",
        ("0.001", "tanh"): "failed",
        ("1e+30", "relu"): "diverged",
        ("1e+30", "tanh"): "diverged",
    }
    assert "got 'many'" in rows["0.001", "tanh"]["reason"]
    assert "the loss is nan" in rows["1e+30", "relu"]["reason"]
    assert "4 runs: 1 done, 1 failed, 2 diverged. 2 diverged: lr=1e+30,activation=relu,seed=0; " in printed
    page = (folder / "study.html").read_text()
    assert "No run of tanh has a value to compare with relu." in page
    assert "got &#39;many&#39;" in page


@pytest.mark.long
def test_its_runs_do_not_compete_for_latest(finished: tuple[Path, str]) -> None:
    folder, _ = finished
    assert not {"latest", "promotions.jsonl"} & {path.name for path in (folder / "runs").iterdir()}
    assert not list(folder.glob("../../latest"))
    model = next(folder.glob("runs/lr=0.001*relu*/model.onnx"))
    assert open_model(model).card.certificate is None


@pytest.mark.long
def test_what_failed_is_made_again_and_what_is_done_is_not(finished: tuple[Path, str]) -> None:
    folder, _ = finished
    (folder / "runs" / "lr=0.001,activation=tanh,seed=0" / "config.yaml").unlink()
    kept = (folder / "runs" / "lr=0.001,activation=relu,seed=0" / "model.onnx").stat().st_mtime_ns
    data = document.read(folder / "study.yaml").base["data"]
    done = run("rates.yaml", "--data", data, cwd=folder.parent.parent.parent)
    assert done.returncode == 0, done.stderr
    assert "4 runs, 1 to make" in done.stdout
    assert (folder / "runs" / "lr=0.001,activation=relu,seed=0" / "model.onnx").stat().st_mtime_ns == kept
    said = json.loads((folder / "study.json").read_text())
    assert said["answers"][0]["sentence"].startswith("Tanh scored ")
    assert "One seed has no interval: undecided." in done.stdout
    model = open_model(folder / "runs" / "lr=0.001,activation=tanh,seed=0" / "model.onnx")
    assert model.card.provenance.config["activation"] == "tanh", "an ordinary run, which can be served"


@pytest.mark.long
def test_results_are_the_same_whichever_way_they_are_scheduled(finished: tuple[Path, str], tmp_path: Path) -> None:
    """Two runs one after the other, as one share of three, against two side by side with all others."""
    folder, _ = finished
    (tmp_path / "rates.yaml").write_text(GRID)
    data = document.read(folder / "study.yaml").base["data"]
    done = run("rates.yaml", "--data", data, "--jobs", 1, "--shard", "1/3", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    part = tmp_path / "runs" / "studies" / "rates"
    names = sorted(path.name for path in (part / "runs").iterdir() if not path.is_symlink())
    assert names == ["lr=0.001,activation=relu,seed=0", "lr=1e+30,activation=tanh,seed=0"]
    one, other = (history.read(place / "runs" / names[0]) for place in (folder, part))
    assert one is not None
    assert other is not None
    assert [line.val_loss for line in one.epochs] == [line.val_loss for line in other.epochs]
    weights = [
        checkpoint.load(place / "runs" / names[0] / "checkpoints" / "best.pt", torch.device("cpu"))["model"]
        for place in (folder, part)
    ]
    assert all(torch.equal(tensor, weights[1][name]) for name, tensor in weights[0].items())
    merged = merge(StudyConfig(study="merge", paths=(part, folder), out=tmp_path, name="whole"))
    said = json.loads((merged / "study.json").read_text())
    assert [result["outcome"] for result in said["results"]].count("not run") == 0
    assert Path(said["results"][0]["run"]).is_dir()


def test_a_folder_that_holds_other_runs_is_refused_with_both_values(tmp_path: Path) -> None:
    (tmp_path / "rates.yaml").write_text(GRID)
    config = StudyConfig(study=str(tmp_path / "rates.yaml"), out=tmp_path)
    prepare_study(declared(config, config.study), tmp_path / "rates")
    with pytest.raises(ConfigError, match=r"rates: holds runs of another base: epochs was 2, now it is 5. --name"):
        study(StudyConfig(study=config.study, out=tmp_path, epochs=5))


def test_the_options_of_a_run_are_for_all_runs_but_for_what_the_study_sets_itself(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The seed and the like are left out. The same command finds the study that it has declared before."""
    (tmp_path / "rates.yaml").write_text(GRID)
    of_run = TrainConfig(epochs=7, model="mlp", seed=5, promote="never", name="one", lr=0.5)
    (tmp_path / "config.yaml").write_text(of_run.to_yaml())
    config = StudyConfig(study=str(tmp_path / "rates.yaml"), config=tmp_path / "config.yaml", out=tmp_path)
    for _ in range(2):
        declaration = declared(config, config.study)
        prepare_study(declaration, tmp_path / "rates")
        assert capsys.readouterr().out == (
            f"config {tmp_path / 'config.yaml'}: without out, cache, promote, floor, margin, seed, "
            "which a study sets itself\n"
        )
    cells = declaration.cells()
    assert {cell.seed for cell in cells} == {0}
    assert {cell.options["epochs"] for cell in cells} == {7}
    assert {cell.options["lr"] for cell in cells} == {0.001, 1e30}, "the axis wins"
    assert document.OWN.isdisjoint(cells[0].options)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (
            {"study": "regularization"},
            "there is no such file; the studies that have a name are activation, backbone, batch-size,",
        ),
        ({"study": "merge"}, "expected the folders"),
        ({"study": "merge", "paths": (Path("absent"),)}, "absent: expected a study's folder, with its study.yaml"),
        ({"study": "regularisation", "shard": "3/2"}, "--shard: expected i/n with i from 1 to n, such as 1/4, got 3/2"),
        (
            {"study": "regularisation", "shard": "half"},
            "--shard: expected i/n with i from 1 to n, such as 1/4, got half",
        ),
    ],
)
def test_what_cannot_be_followed_is_refused(given: dict[str, Any], expected: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=expected):
        study(StudyConfig(**given, out=tmp_path))
    for name in ("epochs", "seeds", "trials", "jobs", "threads"):
        with pytest.raises(ConfigError, match=f"--{name}: expected 1 or more, got 0"):
            StudyConfig(study="regularisation", **cast("Any", {name: 0}))


@pytest.mark.long
def test_more_than_two_hundred_runs_are_only_made_when_that_is_wanted(photos: Path, tmp_path: Path) -> None:
    large = tmp_path / "large.yaml"
    large.write_text("base: {model: mlp, hidden: [4], epochs: 1}\naxes: {seed_of_chance: {only: {}}}\nseeds: 201\n")
    with pytest.raises(ConfigError, match=r"201 runs.* hours, 2 at a time\. --yes makes them"):
        study(StudyConfig(study=str(large), data=photos, out=tmp_path, jobs=2))
    assert not list((tmp_path / "large" / "runs").glob("*,seed=1")), "one run is made, to tell how long they take"


def test_shards_divide_the_cells_without_overlap() -> None:
    cells = declared(StudyConfig(study="x"), "regularisation").cells()
    names = [cell.name for i in (1, 2, 3) for cell in shard(cells, f"{i}/3")]
    assert sorted(names) == sorted(cell.name for cell in cells)


@pytest.mark.long
def test_a_study_that_is_killed_ends_its_runs_and_can_be_continued(photos: Path, tmp_path: Path) -> None:
    (tmp_path / "rates.yaml").write_text(GRID.replace("epochs: 2", "epochs: 4000").replace(", 1.0e+30", ""))
    arguments = command("rates.yaml", "--data", photos)
    variables = os.environ | {"PYTHONPATH": str(ROOT)}
    with subprocess.Popen(arguments, cwd=tmp_path, env=variables) as killed:
        runs = tmp_path / "runs" / "studies" / "rates" / "runs"
        until = time.monotonic() + 120
        while len(list(runs.glob("*/checkpoints/last.pt"))) < 2 and time.monotonic() < until:
            time.sleep(0.1)
        killed.send_signal(signal.SIGKILL)
    locks = list(runs.glob("*/.lock"))
    assert len(locks) == 2
    processes = [Path("/proc") / lock.read_text().split()[1] for lock in locks]
    while any(process.exists() for process in processes) and time.monotonic() < until:
        time.sleep(0.1)
    assert not any(process.exists() for process in processes)
    epochs = {run.name: len(seen.epochs) for run in runs.glob("lr*") if (seen := history.read(run))}
    with subprocess.Popen(arguments, cwd=tmp_path, env=variables) as stopped:
        while time.monotonic() < until:
            now = {run.name: len(seen.epochs) for run in runs.glob("lr*") if (seen := history.read(run))}
            if all(now[name] > epochs[name] for name in epochs):
                break
            time.sleep(0.1)
        stopped.send_signal(signal.SIGTERM)
        assert stopped.wait(60) == 143
    logs = [path.read_text() for path in (runs.parent / "logs").iterdir()]
    assert all("resume " in log for log in logs), "not from the beginning"


BACKBONES = """
title: A backbone or a small network?
base: {image_size: 32, epochs: 1, batch_size: 16}
axes:
  model:
    mlp: {model: mlp, hidden: [8]}
    backbone: {model: mobilenetv3_small_050, weights: none}
seeds: 1
questions:
  - {ask: "Is the backbone better?", measure: val_score, axis: model, compare: [backbone, mlp]}
  - {ask: "What becomes of the gradient?", measure: gradient_ratio, axis: model, against: mlp}
"""


@pytest.mark.long
def test_a_study_of_backbones_has_nothing_to_say_of_layers_before_the_first_step(photos: Path, tmp_path: Path) -> None:
    """Those of timm are not measured then, and the figures show the own network alone."""
    (tmp_path / "backbones.yaml").write_text(BACKBONES)
    done = run("backbones.yaml", "--data", photos, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 runs: 2 done" in done.stdout
    with (tmp_path / "runs" / "studies" / "backbones" / "results.csv").open(newline="") as file:
        ratios = {row["model"]: row["gradient_ratio"] for row in csv.DictReader(file)}
    assert ratios["backbone"] == "" != ratios["mlp"]
