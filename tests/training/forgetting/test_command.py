"""`python -m training forget`, on real runs, evaluations, audits and caches."""

import contextlib
import csv
import hashlib
import json
import re
import shutil
from pathlib import Path

import pytest
import yaml
from filelock import FileLock
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from serving.contract.model import open_model
from tests.support.patients import COPIES, NAMES, PERSON, digests, write
from tests.support.promotions import latest
from tests.support.trainer import command
from training.__main__ import main
from training.data.sources.forgotten import LIST

pytestmark = pytest.mark.long  # what the commands write takes half a minute to make

RUN = [
    "--model",
    "mlp",
    "--hidden",
    "16",
    "--image-size",
    "16",
    "--epochs",
    "2",
    "--augment",
    "light",
    "--leaks",
    "warn",
    "--unfamiliar",
    "0.6",
]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with data, other data of the same names, runs on both in one cache, and what else commands write."""
    home = tmp_path_factory.mktemp("made")
    data, other = ["--data", "data/labels.csv"], ["--data", "other/labels.csv"]
    with contextlib.chdir(home):
        write(Path("data"))
        write(Path("other"), first_seed=5000, copies=False)
        for arguments in (
            [*RUN, *data, "--name", "a", "--margin", "0.99", "--promote", "always"],
            [*RUN, *other, "--name", "b", "--promote", "never"],
            [*RUN, *other, "--name", "c", "--init-from", "runs/a", "--floor", "accuracy=0.99"],
            ["evaluate", "--run", "runs/a", *data, "--split", "all"],
            ["evaluate", "--run", "runs/b", *data, "--compare", "runs/a"],
            ["audit", *data, "--leaks", "warn", "--out", "runs/audits/x"],
            ["robustness", "runs/a", *data],
            ["dossier", "runs/a"],
        ):
            assert main(arguments) == 0
    return home


@pytest.fixture
def runs(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of runs in a copy to change, which is the current folder."""
    monkeypatch.chdir(shutil.copytree(made, tmp_path / "home", symlinks=True))
    return Path("runs")


def forget(*more: str) -> int:
    return main(["forget", "--group", PERSON, "--data", "data/labels.csv", *more])


def rows_of(run: Path) -> list[list[str]]:
    tables = [run / name for name in ("predictions.csv", "predictions-val.csv")]
    return [row for table in tables for row in csv.reader(table.read_text().splitlines())]


def mentions(path: Path) -> list[str]:
    """The names of the person's images that a file has."""
    content = path.read_bytes()
    return [name for name in NAMES if re.search(rb"(?<![\w/])" + re.escape(name.encode()), content)]


def test_without_yes_it_lists_and_changes_nothing(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = digests(Path())
    assert forget() == 0
    assert digests(Path()) == before
    said = capsys.readouterr().out
    assert "9 images, and 3 copies of them" in said
    assert all(f"{name} (a copy of " in said for name in COPIES), "also re-encoded, cropped and mirrored"
    for place in (
        "a/predictions.csv",
        "a/predictions-val.csv",
        "a/audit.json",
        "a/report/report.html",
        "a/dossier.zip",
        "audits/x/audit.html",
    ):
        assert f"{runs / place}: " in said, place
    assert f"weights  {runs / 'a'}: its weights depend on them (train, val, test)" in said
    assert f"weights  {runs / 'c'}: its weights depend on them, as it started from" in said
    assert f"{runs / 'b'}: " not in said, "the same names, but other images"
    assert "Nothing was changed" in said


def test_with_yes_they_are_gone_and_nothing_else_changed(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = digests(Path())
    entries = {path for path in (runs / ".cache").iterdir() if path.is_dir()}
    assert forget("--yes") == 0
    after = digests(Path())
    assert "\nabsent: yes\n" in capsys.readouterr().out
    changed = {path for path in before if after.get(path) != before[path]}
    new = {path for path in after if path not in before}
    assert new == {runs / name for name in ("forgotten.jsonl", LIST, "a/forgotten.json", "c/forgotten.json")} | {
        path for path in new if path.name.startswith(".") and path.suffix == ".lock"
    }
    own = {path for path in changed if not path.is_relative_to(runs / ".cache")}
    assert {path.relative_to(runs).parts[0] for path in own} == {"a", "b", "audits"}
    assert {path.relative_to(runs / "b").parts[0] for path in own if path.is_relative_to(runs / "b")} == {"evaluations"}
    assert not any(path.suffix in (".pt", ".onnx", ".yaml", ".sha256") for path in own)
    kept = {path for path in (runs / ".cache").iterdir() if path.is_dir()}
    assert kept < entries
    assert {path.name.partition("-")[0] for path in kept} >= {"images", "contents"}, "those of the other data"
    for path in after:
        if path.is_relative_to(runs) and not path.is_relative_to(runs / "c") and path.parent != runs / "b":
            assert path.is_relative_to(runs / "b" / "report") or not mentions(path), path


def test_options_of_another_run_beside_the_folder_do_not_hide_what_is_in_it(
    runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Such a file is for `--config`; it says nothing of the data of what is in `runs`."""
    shutil.copy(runs / "a" / "predictions.csv", runs)
    Path("config.yaml").write_text("data: other/labels.csv\n")
    assert forget() == 0
    assert "runs/predictions.csv" in capsys.readouterr().out


def test_rows_and_pictures_of_others_stay(runs: Path) -> None:
    rows = rows_of(runs / "a")
    page = (runs / "a" / "report" / "report.html").read_text()
    assert forget("--yes") == 0
    assert rows_of(runs / "a") == [row for row in rows if row[0] not in NAMES]
    left = (runs / "a" / "report" / "report.html").read_text()
    shown = [name for name in re.findall(r'alt="(\w+/\w+\.\w+)"', page) if name not in NAMES]
    assert set(re.findall(r'alt="(\w+/\w+\.\w+)"', left)) <= set(shown)
    assert "Training images, each with several" in page
    assert "Training images, each with several" not in left
    [robust] = runs.glob("a/robustness/*/robustness.html")
    assert "<figure>" not in robust.read_text()
    assert not (runs / "a" / "report" / "figures" / "augmented.png").exists()
    assert not (runs / "a" / "dossier.zip").exists()
    events = EventAccumulator(str(runs / "a" / "tensorboard"), size_guidance={"images": 0})
    events.Reload()
    assert not {"train/augmented", "val/examples", "val/worst_mistakes"} & set(events.Tags()["images"])
    assert {"val/confusion_matrix", "test/confusion_matrix"} <= set(events.Tags()["images"])
    assert "accuracy/val" in events.Tags()["scalars"], "all other records can still be read"


def test_their_rows_leave_the_training_images_beside_a_model(runs: Path) -> None:
    before = open_model(runs / "a" / "model.onnx", training_images=True)
    assert forget("--yes") == 0
    after = open_model(runs / "a" / "model.onnx", training_images=True)
    assert before.index is not None
    assert after.index is not None
    assert before.digest == after.digest, "the model is the same, and so is the digest in its card"
    assert set(NAMES) & {*before.index.paths}
    assert after.index.paths == tuple(path for path in before.index.paths if path not in NAMES)


def test_the_record_names_nobody(runs: Path) -> None:
    assert forget("--yes") == 0
    text = (runs / "forgotten.jsonl").read_text()
    record = json.loads(text)
    assert record["group_sha256"] == hashlib.sha256(PERSON.encode()).hexdigest()
    assert (record["images"], record["absent"], record["retrained"]) == (12, True, {})
    assert f'"{PERSON}"' not in text
    assert not any(name in text for name in NAMES)


def test_runs_are_trained_again_without_the_images_which_stay(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = digests(Path("data"), Path("other"))
    assert forget("--yes", "--retrain") == 0
    said = capsys.readouterr().out
    assert "data     data/labels.csv still holds 12; --delete-images deletes them" in said
    assert "12 images are left out, by the list of forgotten images" in said
    assert digests(Path("data"), Path("other")) == before
    tested = [row[0] for row in rows_of(runs / "a-again")][1:]
    assert tested
    assert not set(tested) & set(NAMES)
    assert latest(runs) == "a-again", "by --promote always, which the run has declared"
    assert json.loads((runs / "forgotten.jsonl").read_text())["retrained"] == {"a": "a-again", "c": "c-again"}
    started = yaml.safe_load((runs / "c-again" / "config.yaml").read_text())
    assert (started["init_from"], started["data"]) == (str(runs / "a-again"), "other/labels.csv")
    assert main(["promote", str(runs / "a")]) == 1
    assert "its weights depend on images that were forgotten" in capsys.readouterr().err
    assert main(["rollback", "--out", str(runs)]) == 2
    assert "its weights depend on images that were forgotten" in capsys.readouterr().err
    assert latest(runs) == "a-again"
    made = digests(runs / "a-again", runs / "c-again")
    assert forget("--yes", "--retrain") == 0, "what is made is not made again"
    assert digests(runs / "a-again", runs / "c-again") == made
    said = capsys.readouterr().out
    assert f"weights  {runs / 'a'} is marked (forgotten.json); delete it where nobody needs it; in its place is" in said
    assert "holds    " not in said


def test_images_and_rows_are_deleted(runs: Path) -> None:
    data = Path("data")
    lines = (data / "labels.csv").read_bytes().splitlines(keepends=True)
    others = {path: digest for path, digest in digests(data, Path("other")).items() if path != data / "labels.csv"}
    assert forget("--yes", "--delete-images") == 0
    own = {data / name for name in NAMES}
    expected = {path: digest for path, digest in others.items() if path not in own}
    assert {path: digest for path, digest in digests(data, Path("other")).items() if path in others} == expected
    kept = b"".join(line for line in lines if line.decode().partition(",")[0] not in NAMES)
    assert (data / "labels.csv").read_bytes() == kept


def test_latest_is_named_where_it_still_leads_to_such_weights(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert forget("--yes") == 0
    assert f"WARNING: {runs / 'latest'} leads to {runs / 'a'}, whose weights" in capsys.readouterr().out


def test_what_cannot_be_taken_away_is_left_with_exit_code_1(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    foreign = runs / "a" / "notes.bin"
    foreign.write_bytes(b"\0blue/0.png\0")
    assert forget("--yes") == 1
    assert f"{foreign}: 1 names, in a file of another kind" in capsys.readouterr().err
    assert foreign.read_bytes() == b"\0blue/0.png\0"
    assert json.loads((runs / "forgotten.jsonl").read_text())["absent"] is False


def test_an_image_that_is_gone_already_is_searched_by_its_name(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """By its name in the data, also where the path is that of the file, and once, if it is given twice."""
    lines = (Path("data") / "labels.csv").read_text().splitlines(keepends=True)
    (Path("data") / "labels.csv").write_text("".join(line for line in lines if not line.startswith("red/8.png")))
    (Path("data") / "red" / "8.png").unlink()
    arguments = ["--data", "data/labels.csv", "--path", "data/red/8.png", "red/8.png"]
    assert main(["forget", *arguments, "--yes"]) == 0
    said = capsys.readouterr().out
    assert "person   1 images, and 0 copies" in said
    assert "warning: red/8.png is not in " in said
    assert "red/8.png" not in (runs / "a" / "predictions.csv").read_text()
    assert "red/9.png" in (runs / "a" / "predictions.csv").read_text()


def test_a_path_may_be_that_of_the_file(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = Path("data")
    arguments = [
        "--data",
        str(data / "labels.csv"),
        "--out",
        str(runs),
        "--path",
        str(data / "blue" / "0.png"),
    ]
    assert main(["forget", *arguments]) == 0
    assert "1 images, and 3 copies of them" in capsys.readouterr().out


def test_an_image_may_be_a_link_that_leads_elsewhere(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image = Path("data") / "red" / "9.png"
    image.rename("elsewhere.png")
    image.symlink_to(Path("elsewhere.png").absolute())
    assert main(["forget", "--data", "data/labels.csv", "--path", str(image)]) == 0
    said = capsys.readouterr().out
    assert "person   1 images, and 0 copies" in said
    assert "warning" not in said


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["--group", "P1000"], 3, "no image has the group 'P1000'"),
        ([], 2, "expected --group or --path"),
        (["--group", " "], 2, "images without a group are not of one person"),
        (["--path", "data/blue", "--yes"], 2, "--path blue: a folder; expected images"),
        (["--path", "blue", "--yes"], 2, "--path blue: a folder; expected images"),
        (["--path", "labels.csv", "--yes"], 2, "neither in the data nor the name of an image"),
        (["--group", PERSON, "--retrain"], 2, "--retrain: expected --yes"),
    ],
)
def test_what_cannot_be_done_is_refused(
    runs: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], code: int, said: str
) -> None:
    before = digests(Path())
    assert main(["forget", "--data", "data/labels.csv", *arguments]) == code
    assert said in capsys.readouterr().err
    assert digests(Path()) == before


def test_a_run_in_progress_is_not_disturbed(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = digests(Path())
    with FileLock(runs / "b" / ".lock"):
        assert forget("--yes") == 2
    assert "a process trains in it" in capsys.readouterr().err
    assert digests(Path()) == before


def test_as_a_person_types_it(runs: Path) -> None:
    done = command("forget", "--group", PERSON, "--data", "data/labels.csv", "--yes", cwd=runs.absolute().parent)
    assert done.returncode == 0, done.stderr
    assert "\nabsent: yes\n" in done.stdout
