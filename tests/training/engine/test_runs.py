import json
import os
import shutil
import signal
import time
from dataclasses import replace
from pathlib import Path

import albumentations as A
import pytest

from serving.contract.objects import Url
from tests.support.checkpoints import last, same
from tests.support.trainer import STEPS_AN_EPOCH, After, config, start
from training.__main__ import main, options
from training.engine import runs
from training.engine.runs import PENDING_PROMOTION, is_finished
from training.errors import CheckpointRefused, ConfigError, Interrupted
from training.options.config import TrainConfig
from training.promotion import outcome
from training.promotion.outcome import leave_pending
from training.signals import Interruption
from training.train import train


@pytest.fixture(scope="module")
def uninterrupted(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(config(photos, tmp_path_factory.mktemp("whole"), name="whole", workers=0))


@pytest.mark.parametrize(
    ("looks", "epochs", "steps", "workers"),
    [
        (0, 0, 1, 0),
        (9, 1, 0, 0),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in ((4, 0, 5, 2), (0, 0, 1, 2), (4, 0, 5, 0), (8, 0, 8, 0), (9, 1, 0, 2), (10, 1, 1, 2))
        ),
    ],
)
def test_a_run_that_was_stopped_and_continues_ends_as_one_that_was_not(
    photos: Path, tmp_path: Path, uninterrupted: Path, looks: int, epochs: int, steps: int, workers: int
) -> None:
    begun = config(photos, tmp_path, name="x", workers=workers)
    with pytest.raises(Interrupted):
        train(begun, After(looks))
    state = last(tmp_path / "x")
    assert (len(state["progress"]["history"]), state["progress"]["step"]) == (epochs, steps)
    resumed = train(options("train", ["--resume", str(tmp_path / "x")]))
    assert same(last(resumed), last(uninterrupted))
    reports = [json.loads((run / "report" / "report.json").read_text()) for run in (resumed, uninterrupted)]
    assert reports[0]["scores"] == reports[1]["scores"]
    assert (resumed / "predictions.csv").read_bytes() == (uninterrupted / "predictions.csv").read_bytes()


def test_it_continues_from_the_checkpoint_before_when_the_last_is_damaged(
    photos: Path, tmp_path: Path, uninterrupted: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(Interrupted):
        train(config(photos, tmp_path, name="x", workers=0), After(STEPS_AN_EPOCH + 3))
    path = tmp_path / "x" / "checkpoints" / "last.pt"
    path.write_bytes(path.read_bytes()[:-100])
    resumed = train(options("train", ["--resume", str(tmp_path / "x")]))
    assert "its digest does not fit; continuing from previous.pt" in capsys.readouterr().out
    assert same(last(resumed), last(uninterrupted))
    path.write_bytes(b"")
    path.with_name("previous.pt").unlink()
    shutil.rmtree(resumed / "report")
    with pytest.raises(CheckpointRefused, match=r"last\.pt: damaged"):
        train(options("train", ["--resume", str(resumed)]))


def test_a_run_whose_report_is_missing_makes_just_that(uninterrupted: Path, tmp_path: Path) -> None:
    run = shutil.copytree(uninterrupted, tmp_path / "copy")
    for left in ("model.onnx", "predictions.csv"):
        (run / left).unlink()
    shutil.rmtree(run / "report")
    train(options("train", ["--resume", str(run)]))
    assert (run / "predictions.csv").read_bytes() == (uninterrupted / "predictions.csv").read_bytes()
    assert same(last(run), last(uninterrupted))
    assert (tmp_path / "latest").resolve() == run


def test_a_finished_run_is_left_alone(uninterrupted: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {path: path.stat().st_mtime_ns for path in uninterrupted.rglob("*") if path.name != ".lock"}
    assert main(["--resume", str(uninterrupted)]) == 0
    assert "nothing to resume" in capsys.readouterr().out
    assert before == {path: path.stat().st_mtime_ns for path in uninterrupted.rglob("*") if path.name != ".lock"}


@pytest.mark.slow
def test_files_may_be_given_again_unless_their_content_has_changed(photos: Path, tmp_path: Path) -> None:
    own, matrix, run = tmp_path / "own.yaml", tmp_path / "matrix.csv", tmp_path / "x"
    A.save(A.Compose([A.HorizontalFlip(p=0.5)]), own, data_format="yaml")
    rows = ["Red rash,0,5,5,0.5", "blue,1,0,1,0.5", "green leaf,1,1,0,0.5"]
    matrix.write_text("\n".join([",Red rash,blue,green leaf,refer", *rows]))
    with pytest.raises(Interrupted):
        train(config(photos, tmp_path, name="x", workers=0, augment=own, costs=matrix), After(2))
    asked = ["--resume", str(run), "--augment", str(own), "--costs", str(matrix)]
    matrix.write_text("\n".join([",Red rash,blue,green leaf,refer", *reversed(rows)]))
    resumed = options("train", asked)
    assert (resumed.augment, resumed.costs) == (run / "augment.yaml", run / "costs.csv")
    assert train(resumed) == run
    matrix.write_text(matrix.read_text().replace("0.5", "0.6"))
    with pytest.raises(CheckpointRefused, match=r"--costs .*matrix.csv: its content is not that of .*/x/costs.csv"):
        options("train", asked)
    own.unlink()
    with pytest.raises(ConfigError, match=r"--augment .*own.yaml: cannot be compared with .*x/augment.yaml \(No such"):
        options("train", asked)


def test_other_options_and_other_data_are_refused_with_both_values(photos: Path, tmp_path: Path) -> None:
    data = shutil.copytree(photos, tmp_path / "photos")
    begun = config(data, tmp_path, name="x", workers=0)
    with pytest.raises(Interrupted):
        train(begun, After(2))
    with pytest.raises(CheckpointRefused, match=r"--lr was 0.003, now it is 0.1, --ema was 0.9, now it is 0.5"):
        options("train", ["--resume", str(tmp_path / "x"), "--lr", "0.1", "--ema", "0.5"])
    same_again = options("train", ["--resume", str(tmp_path / "x"), "--ema", "0.9", "--workers", "1"])
    assert same_again.workers == 1
    shutil.copy(next(data.glob("blue/*.png")), data / "green leaf" / "new.png")
    with pytest.raises(
        CheckpointRefused, match=r"checkpoints holds another run: data was [0-9a-f]{64}, now it is [0-9a-f]{64}"
    ):
        train(same_again)
    assert (tmp_path / "x" / "checkpoints" / "last.pt").exists(), "a refusal takes nothing away"


@pytest.mark.parametrize("given", [["--model", "auto"], ["--augment-on", "auto"], ["--weights", "none"]])
def test_the_options_with_which_a_run_began_may_be_given_again(photos: Path, tmp_path: Path, given: list[str]) -> None:
    """A Job gives all of them at each start; what was left open is decided by then."""
    asked = [
        "--data",
        str(photos),
        "--out",
        str(tmp_path),
        "--name",
        "x",
        "--image-size",
        "16",
        "--epochs",
        "2",
        *given,
    ]
    with pytest.raises(Interrupted):
        train(options("train", asked), After(2))
    begun = runs.load_config(tmp_path / "x")
    resumed = options("train", [*asked, "--resume", "auto"])
    assert resumed == replace(begun, resume="auto")
    with pytest.raises(CheckpointRefused, match="cannot continue with other options: --augment-on was"):
        options("train", [*asked, "--augment-on", "workers", "--resume", "auto"])


def test_a_file_of_options_may_be_given_again_unless_it_has_changed(photos: Path, tmp_path: Path) -> None:
    own, file, run = tmp_path / "own.yaml", tmp_path / "options.yaml", tmp_path / "x"
    A.save(A.Compose([A.HorizontalFlip(p=0.5)]), own, data_format="yaml")
    begun = config(photos, tmp_path, model="cnn", weights="none", workers=0, augment=own, batch_size=None, lr=0.01)
    file.write_text(begun.to_yaml())
    arguments = ["--config", str(file), "--name", "x", "--resume", "auto"]
    with pytest.raises(Interrupted):
        train(options("train", arguments), After(2))
    resumed = options("train", arguments)
    assert (resumed.augment, resumed.weights, resumed.lr) == (run / "augment.yaml", None, 0.01)
    assert resumed.batch_size == 32, "the run's own, which the file leaves open"
    elsewhere = ["--config", str(run / "config.yaml"), "--resume", os.path.relpath(run)]
    assert options("train", elsewhere).lr == 0.01
    file.write_text(replace(begun, workers=1, promote="never", lr=0.1, model="mlp", width=32).to_yaml())
    with pytest.raises(CheckpointRefused, match=r"other options: --model was cnn, now it is mlp, --lr was 0.01, now"):
        options("train", arguments)
    resumed = options("train", [*arguments, "--lr", "0.01", "--model", "cnn"])
    assert (resumed.workers, resumed.promote) == (1, "never"), "the command line wins, and these change no result"
    A.save(A.Compose([A.VerticalFlip(p=0.5)]), own, data_format="yaml")
    with pytest.raises(CheckpointRefused, match=r"--augment .*own.yaml: its content is not that of"):
        options("train", [*arguments, "--lr", "0.01", "--model", "cnn"])


@pytest.mark.slow
def test_a_run_that_has_moved_continues_with_its_own_copies_of_files(photos: Path, tmp_path: Path) -> None:
    own, costs = tmp_path / "own.yaml", tmp_path / "own.csv"
    A.save(A.Compose([A.HorizontalFlip(p=0.5)]), own, data_format="yaml")
    classes = sorted(folder.name for folder in photos.iterdir() if folder.is_dir())
    rows = [[name, *(str(float(name != other)) for other in classes)] for name in classes]
    costs.write_text("\n".join(",".join(row) for row in [["", *classes], *rows]))
    begun = config(photos, tmp_path / "runs", name="x", model="cnn", workers=0, augment=own, costs=costs)
    with pytest.raises(Interrupted):
        train(begun, After(2))
    own.unlink()
    costs.unlink()
    moved = (tmp_path / "runs" / "x").rename(tmp_path / "runs" / "y")
    assert train(options("train", ["--resume", os.path.relpath(moved)])).resolve() == moved
    assert is_finished(moved)


def test_an_option_that_an_older_version_did_not_use_is_none_of_its_run(tmp_path: Path) -> None:
    (tmp_path / runs.CONFIG).write_text("model: cnn\nhidden: [64]\nwidth: 8\n")
    assert (runs.load_config(tmp_path).hidden, runs.load_config(tmp_path).width) == (TrainConfig.hidden, 8)
    with pytest.raises(ConfigError, match="expected mlp beside --hidden, got cnn"):
        options("train", ["--config", str(tmp_path / runs.CONFIG)])


def test_a_url_may_be_given_again_with_its_password(tmp_path: Path) -> None:
    """Where a run keeps it, it has none."""
    url = "https://me:secret@host.example/photos.npz?download=1"
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "config.yaml").write_text(TrainConfig(data=Url(url), model="cnn").to_yaml())
    given = ["--out", str(tmp_path), "--name", "x", "--model", "cnn", "--resume", "auto"]
    resumed = options("train", [*given, "--data", url])
    assert isinstance(resumed.data, Url)
    assert resumed.data.text == url
    with pytest.raises(CheckpointRefused, match=r"--data was \S+/photos\.npz, now it is \S+/other\.npz$"):
        options("train", [*given, "--data", "https://host.example/other.npz"])


@pytest.mark.parametrize("spelling", [".", "../x", "../link", "../x/checkpoints/.."])
def test_a_run_to_resume_may_be_named_in_any_way(
    uninterrupted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spelling: str
) -> None:
    run = shutil.copytree(uninterrupted, tmp_path / "x")
    (tmp_path / "link").symlink_to("x")
    monkeypatch.chdir(run)
    resumed = options("train", ["--resume", spelling])
    assert resumed.name == "x"
    assert (resumed.out / "x").resolve() == run
    assert train(resumed).resolve() == run
    assert {path.name for path in tmp_path.iterdir()} == {"x", "link"}


def test_a_run_that_failed_is_not_kept_locked_by_its_error(photos: Path, tmp_path: Path) -> None:
    with pytest.raises(Interrupted) as stopped:
        train(config(photos, tmp_path, name="x", workers=0), After(1))
    assert not runs.is_open(tmp_path / "x"), stopped.value


def test_auto_continues_with_the_named_or_the_newest_unfinished_run_or_begins(photos: Path, tmp_path: Path) -> None:
    asked = ["--out", str(tmp_path), "--resume", "auto"]
    assert options("train", asked).name is None, "there is none, so a new one begins"
    assert options("train", [*asked, "--name", "a"]).name == "a"
    for name in ("a", "b"):
        with pytest.raises(Interrupted):
            train(config(photos, tmp_path, name=name, workers=0), After(1))
    assert options("train", asked).name == "b"
    assert options("train", [*asked, "--name", "a"]).name == "a"
    assert options("train", asked).mixup == 0.4, "its own options hold"
    (tmp_path / "b" / "report").mkdir()
    assert options("train", asked).name == "a"
    with pytest.raises(ConfigError, match="expected a run's folder"):
        options("train", ["--resume", str(tmp_path / "absent")])


@pytest.mark.parametrize(
    "name", ["notes.txt", "checkpoints/best.pt", "tensorboard/notes.txt", "report/a", "config.yaml"]
)
def test_a_new_run_takes_no_folder_that_holds_anything_but_a_run_s_beginning(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    theirs = tmp_path / "x" / name
    theirs.parent.mkdir(parents=True)
    theirs.write_text("precious")
    arguments = ["--data", "absent", "--out", str(tmp_path), "--name", "x"]
    assert main(arguments) == 2
    assert f"{tmp_path}/x/{Path(name).parts[0]}" in capsys.readouterr().err
    if name != "config.yaml":
        assert main([*arguments, "--resume", "auto"]) == 2, "no run to go on with is there"
        (tmp_path / "x" / ".lock").touch()
        assert main([*arguments, "--resume", "auto"]) == 2
        assert main(arguments) == 2, "a run's lock does not make it a run's"
    assert theirs.read_text() == "precious"


@pytest.mark.slow
def test_two_processes_never_train_in_one_folder(photos: Path, tmp_path: Path) -> None:
    arguments = ["--data", str(photos), "--out", str(tmp_path), "--name", "x", "--model", "mlp", "--epochs", "100000"]
    first = start(arguments)
    try:
        assert main([*arguments, "--resume", "auto"]) == 2
    finally:
        first.kill()
        first.communicate()


@pytest.mark.slow
def test_sigterm_saves_and_exits_143_and_auto_continues(photos: Path, tmp_path: Path) -> None:
    arguments = ["--data", str(photos), "--out", str(tmp_path), "--name", "x", "--workers", "2", "--epochs", "400"]
    arguments += ["--width", "8", "--image-size", "16", "--batch-size", "8", "--patience", "1000"]
    trainer = start(arguments)
    asked = time.monotonic()
    trainer.terminate()
    _, errors = trainer.communicate(timeout=25)
    assert trainer.returncode == 143
    assert time.monotonic() - asked < 25
    assert "stopped by SIGTERM" in errors
    assert "Traceback" not in errors
    before = last(tmp_path / "x")["progress"]
    again = start([*arguments, "--resume", "auto"], epochs=3)
    again.send_signal(signal.SIGINT)
    again.communicate(timeout=25)
    assert again.returncode == 130
    assert len(last(tmp_path / "x")["progress"]["history"]) > len(before["history"])


@pytest.mark.long
def test_a_run_that_fails_ends_with_its_workers(photos: Path, tmp_path: Path) -> None:
    arguments = ["--data", str(photos), "--out", str(tmp_path), "--name", "x", "--workers", "2", "--epochs", "400"]
    trainer = start([*arguments, "--width", "8", "--image-size", "16", "--batch-size", "8"])
    assert trainer.stdout is not None
    trainer.stdout.close()  # the next line that it prints is an error
    assert trainer.wait(timeout=60) == 6
    assert trainer.stderr is not None
    assert "Broken pipe" in trainer.stderr.read()
    trainer.stderr.close()


@pytest.mark.long
def test_a_signal_to_the_whole_group_leaves_the_last_step_to_the_trainer(photos: Path, tmp_path: Path) -> None:
    arguments = ["--data", str(photos), "--out", str(tmp_path), "--name", "x", "--workers", "2", "--epochs", "400"]
    trainer = start([*arguments, "--width", "8", "--image-size", "16", "--batch-size", "8"])
    os.killpg(trainer.pid, signal.SIGTERM)
    _, errors = trainer.communicate(timeout=25)
    assert trainer.returncode == 143
    assert "Traceback" not in errors


def test_a_second_signal_ends_it_at_once(photos: Path, tmp_path: Path) -> None:
    stopping = Interruption()
    stopping.install()
    child = os.fork()
    if child == 0:
        with stopping.deferred():
            os.kill(os.getpid(), signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGTERM)
            os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 143


def test_latest_must_be_free_before_training(photos: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--name latest"):
        train(config(photos, tmp_path / "new", name="latest"))
    (tmp_path / "out" / "latest").mkdir(parents=True)
    with pytest.raises(ConfigError, match="latest is no link"):
        train(config(photos, tmp_path / "out", name="x"))
    assert not (tmp_path / "out" / "x").exists()


def test_a_promotion_that_failed_is_resumed_and_leaves_nothing(uninterrupted: Path, tmp_path: Path) -> None:
    run = shutil.copytree(uninterrupted, tmp_path / "x")
    leave_pending(run, "always", None)
    (tmp_path / "latest").mkdir()  # made by another program while the run trained
    with pytest.raises(OSError, match="is complete; --resume"):
        outcome.settle(run, "always")
    assert not is_finished(run)
    assert {path.name for path in tmp_path.iterdir()} == {"x", "latest", ".promotions.lock", "promotions.jsonl"}
    assert (tmp_path / "promotions.jsonl").read_bytes() == b"", "nothing has moved"
    (tmp_path / "latest").rmdir()
    assert train(options("train", ["--resume", str(run)])) == run
    assert is_finished(run)
    assert (tmp_path / "latest").resolve() == run
    assert not (run / PENDING_PROMOTION).exists()
