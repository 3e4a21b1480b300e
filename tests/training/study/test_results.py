import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from tests.support.histories import epochs
from training.engine import history
from training.engine.history import History
from training.metrics.classification import TITLES
from training.models.diagnostics import AtStart
from training.study.measures import MEASURES
from training.study.results import collect_results
from training.study.spec import document
from training.study.spec.grid import Study

QUESTION = """
axes: {network: {slow: {model: cnn}, quick: {model: mlp}, tiny: {model: mlp, hidden: [2]}}}
seeds: 1
"""
IN_TIME = "questions: [{ask: '?', measure: val_score_in_equal_time, axis: network, compare: [slow, quick]}]"
START = AtStart(layer="1.1", output_variance=1.0, gradient_variance=1.0, weight_gradient_norm=1.0)
SECONDS = {"slow": 4.0, "quick": 3.0, "tiny": 0.1}


def made(text: str, folder: Path) -> dict[str, dict[str, float | None]]:
    """The values of three runs of three epochs, of 4, 3 and 0.1 s each."""
    (folder / "grid.yaml").write_text(text)
    study: Study = document.read(folder / "grid.yaml")
    for cell, scores in zip(study.cells(), [(0.5, 0.7, 0.9), (0.2, 0.5, 0.6), (0.1, 0.1, 0.1)], strict=True):
        run = folder / "runs" / cell.name
        (run / "report").mkdir(parents=True)
        split = dict.fromkeys(TITLES, 0.5)
        (run / "report" / "report.json").write_text(
            json.dumps({"scores": dict.fromkeys(("train", "val", "test"), split)})
        )
        seen = epochs(*scores, seconds=SECONDS[cell.levels["network"]])
        history.write(run, History(classes=3, parameters=1, steps_an_epoch=1, at_start=[START] * 2, epochs=seen))
    return {result.cell.levels["network"]: result.values for result in collect_results(study, [folder])}


def test_equal_time_is_that_of_the_quicker_one_of_those_that_are_compared(tmp_path: Path) -> None:
    values = made(QUESTION + IN_TIME, tmp_path)
    scores = {level: of["val_score_in_equal_time"] for level, of in values.items()}
    assert scores == {"slow": 0.7, "quick": 0.6, "tiny": 0.1}, "9 seconds, which the slow one uses for two epochs"


def test_where_no_question_says_who_is_compared_equal_time_is_that_of_the_quickest(tmp_path: Path) -> None:
    values = made(QUESTION, tmp_path)
    assert values["slow"]["val_score_in_equal_time"] is None


def test_a_run_that_was_stopped_is_no_reference_for_others(tmp_path: Path) -> None:
    made(QUESTION + IN_TIME, tmp_path)
    [quick] = (tmp_path / "runs").glob("network=quick*")
    shutil.rmtree(quick / "report")
    study = document.read(tmp_path / "grid.yaml")
    values = {result.cell.levels["network"]: result.values for result in collect_results(study, [tmp_path])}
    assert values["slow"]["val_score_in_equal_time"] == 0.9, "the time of all its own epochs"
    assert values["quick"]["val_score_in_equal_time"] is None


def test_a_run_that_learns_nothing_does_not_learn_soonest(tmp_path: Path) -> None:
    """95 % of a final score that is no better than the first is reached at once; of the median run's, never."""
    values = made(QUESTION, tmp_path)
    assert values["tiny"]["epochs_to_common"] is None
    assert values["quick"]["epochs_to_common"] == pytest.approx(2.7)
    assert values["slow"]["epochs_to_common"] == pytest.approx(1.35)


def test_the_validation_score_is_that_of_the_exported_model(tmp_path: Path) -> None:
    """A bias that is fitted after training moves it; each score of the report is a measure, too."""
    values = made(QUESTION, tmp_path)["slow"]
    assert (values["val_score"], values["final_val_score"]) == (0.5, 0.9)
    assert [values[f"{split}_{name}"] for split in ("val", "test") for name in TITLES] == [0.5] * 10
    assert MEASURES["test_roc_auc"].sentence == "{a} had a ROC AUC of {x} on test images against {y} of {b}"
    assert MEASURES["val_accuracy"].sentence == "{a} had an accuracy of {x} on validation images against {y} of {b}"
    assert {name for name in TITLES if MEASURES[f"val_{name}"].better == "lower"} == {"log_loss"}


def test_epochs_of_runs_that_choose_theirs_by_another_score_are_compared_by_one(tmp_path: Path) -> None:
    """The second run settled --best-by log_loss, and its history has losses."""
    made(QUESTION, tmp_path)
    [run] = (tmp_path / "runs").glob("network=quick*")
    record = history.read(run)
    assert record is not None
    history.write(run, replace(record, epochs=[replace(line, val_score=1.7) for line in record.epochs]))
    results = collect_results(document.read(tmp_path / "grid.yaml"), [tmp_path])
    values = {result.cell.levels["network"]: result.values["final_val_score"] for result in results}
    assert values == {"slow": 0.9, "quick": 0.6, "tiny": 0.1}


def test_with_log_losses_a_share_is_reached_from_above(tmp_path: Path) -> None:
    """The median run ends with 0.6, the goal is 0.6 - log(0.95) = 0.65, and no run began above it."""
    values = made(QUESTION + "base: {best_by: log_loss}", tmp_path)
    assert {level: of["epochs_to_common"] for level, of in values.items()} == {"slow": 1.0, "quick": 1.0, "tiny": 1.0}
    assert values["slow"]["epochs_to_95"] == 1.0, "its loss rose"
    assert values["slow"]["final_val_score"] == 0.9, "the loss itself"
