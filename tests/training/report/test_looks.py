"""The log of looks at test splits, and what reports say by it."""

import json
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest

from serving.contract.decode import Digest
from tests.support.promotions import copied, make, options
from tests.support.trainer import After
from training.__main__ import main
from training.engine import runs
from training.errors import Interrupted
from training.report import looks
from training.report.looks import EarlierLooks, Look, record_look
from training.train import train

SPLIT, OTHER = Digest("a" * 64), Digest("b" * 64)


def look(**given: Any) -> Look:
    common: dict[str, Any] = {"what": "run", "models": ("x",), "test_split": SPLIT, "images": 9}
    return Look(**(common | given))


def logged(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / looks.LOG).read_text().splitlines()]


def reported(run: Path) -> dict[str, Any]:
    facts: dict[str, Any] = json.loads((run / "report" / "report.json").read_text())["test_looks"]
    return facts


@pytest.mark.long
def test_runs_evaluations_and_comparisons_count_for_their_test_split(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "runs"
    one, two, other = (make(photos, out, name=name, seed=seed) for name, seed in (("a", 0), ("b", 0), ("c", 1)))
    assert [reported(run)["before"] for run in (one, two, other)] == [0, 1, 0]
    assert "(1 run)" in (two / "report" / "report.html").read_text()
    assert reported(two)["sentence"] in (two / "report" / "report.md").read_text()
    data = ["--data", str(photos), "--out", str(tmp_path / "evaluated")]
    assert main(["evaluate", "--run", str(out / "a"), "--compare", str(other), *data]) == 0
    found = json.loads((tmp_path / "evaluated" / "evaluation.json").read_text())["test_looks"]
    assert (found["before"], found["by"]) == (2, {"run": 2})
    assert found["sentence"] in (tmp_path / "evaluated" / "evaluation.html").read_text()
    again = ["--data", str(photos), "--out"]
    assert main(["evaluate", "--run", str(two), *again, str(tmp_path / "all"), "--split", "all"]) == 0
    found = json.loads((tmp_path / "all" / "evaluation.json").read_text())["test_looks"]
    assert (found["before"], found["by"]) == (3, {"run": 2, "compare": 1}), "all images hold the test split"
    assert main(["evaluate", "--run", str(one), *again, str(tmp_path / "val"), "--split", "val"]) == 0
    assert json.loads((tmp_path / "val" / "evaluation.json").read_text())["test_looks"] is None
    assert [(line["what"], line["models"]) for line in logged(out)] == [
        ("run", ["a"]),
        ("run", ["b"]),
        ("run", ["c"]),
        ("compare", ["a", "c"]),
        ("evaluate", ["b"]),
    ]
    report = json.loads((one / "report" / "report.json").read_text())
    assert logged(out)[0]["test_split"] == report["data"]["test_digest"]


@pytest.mark.long
def test_a_resumed_run_counts_once(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(photos, tmp_path, name="before")
    with pytest.raises(Interrupted):
        train(options(photos, tmp_path, name="x"), After(1))
    with monkeypatch.context() as patch:
        patch.setattr("training.train.write_report", lambda inputs: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):  # killed after the look and before the report
            train(options(photos, tmp_path, name="x", resume="auto"))
    assert [line["models"] for line in logged(tmp_path)] == [["before"], ["x"]]
    make(photos, tmp_path, name="meanwhile")
    run = train(options(photos, tmp_path, name="x", resume="auto"))
    assert reported(run)["before"] == 1
    assert [line["models"] for line in logged(tmp_path)] == [["before"], ["x"], ["meanwhile"]]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["study", "search"])
def test_runs_of_a_study_are_logged_above_it_with_its_name(photos: Path, tmp_path: Path, kind: str) -> None:
    study = tmp_path / "runs" / "studies" / "rates"
    study.mkdir(parents=True)
    (study / runs.STUDY).touch()
    if kind == "search":
        (study / runs.JOURNAL).touch()
    run = make(photos, study / "runs", name="cell", promote="never")
    [line] = logged(tmp_path / "runs")
    assert (line["what"], line["study"], line["models"]) == (kind, "rates", ["cell"])
    assert main(["evaluate", "--run", str(run), "--data", str(photos), "--out", str(tmp_path / "out")]) == 0
    assert [line["what"] for line in logged(tmp_path / "runs")] == [kind, "evaluate"]


def test_the_sentence_says_what_the_number_means() -> None:
    assert EarlierLooks(before=0, by={}).sentence == "No earlier look at this test split is recorded."
    assert EarlierLooks(before=3, by={"run": 2, "compare": 1}).sentence == (
        "This test split was looked at 3 times before (2 runs, 1 comparison). Where such a look has guided a choice, "
        "the score of what was chosen is too high, by an amount that no interval shows. Without any choice, too, at "
        "least one of 4 intervals of 95 % misses the true score with a probability of up to 20%."
    )
    assert "of up to 100%" in EarlierLooks(before=30, by={"study": 30}).sentence
    assert "looked at once before (1 evaluation)" in EarlierLooks(before=1, by={"evaluate": 1}).sentence


def test_a_folder_that_cannot_be_written_fails_no_evaluation(run: Path, photos: Path, tmp_path: Path) -> None:
    out = copied(run.parent, tmp_path / "runs")
    (out / looks.LOG).unlink(missing_ok=True)
    (out / looks.LOG).mkdir()  # root, as in containers, may write where the mode forbids it
    assert main(["evaluate", "--run", str(out / "tiny"), "--data", str(photos), "--out", str(tmp_path / "out")]) == 0
    found = json.loads((tmp_path / "out" / "evaluation.json").read_text())["test_looks"]
    assert found["before"] is None
    assert "is not known: " in found["sentence"]
    assert ".looks.jsonl cannot be kept (Is a directory)" in found["sentence"]
    absent = record_look(tmp_path / "absent", look())
    assert (absent.before, (tmp_path / "absent").exists()) == (None, False)


def test_torn_lines_are_counted_and_end_no_other(tmp_path: Path) -> None:
    record_look(tmp_path, look())
    with (tmp_path / looks.LOG).open("a") as file:
        file.write('{"what": "ru')  # killed while it wrote
    found = record_look(tmp_path, look())
    assert found.before == 1
    assert "1 of the lines of" in found.sentence
    assert record_look(tmp_path, look(test_split=OTHER)).before == 0
    assert record_look(tmp_path, look()).before == 2


def _record(out: Path) -> int:
    found = record_look(out, look()).before
    assert found is not None
    return found


@pytest.mark.long
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_processes_that_write_at_once_lose_no_line(tmp_path: Path) -> None:
    with ProcessPoolExecutor(4, get_context("spawn")) as pool:
        found = list(pool.map(_record, [tmp_path] * 40))
    assert sorted(found) == list(range(40)), "each one knows all before it"
    assert len(logged(tmp_path)) == 40
