import csv
import json
from dataclasses import replace
from pathlib import Path

from tests.support.histories import epochs
from training.models.diagnostics import AtStart
from training.study import report as study_report
from training.study import spec as grid
from training.study.command import StudyConfig, declared
from training.study.measures import MEASURES
from training.study.results import Result
from training.study.spec import Question, Study


def made(study: Study, folder: Path) -> list[Result]:
    """Each level a tenth better than the one before, whatever the seed; the last one diverges."""
    levels = [name for axis in study.axes.values() for name in axis]
    results = []
    for cell in study.cells():
        place = levels.index(next(iter(cell.levels.values())))
        lost = place == len(levels) - 1
        score = None if lost else 0.1 * place + 0.001 * cell.seed
        layers = [
            AtStart(layer="1.1", output_variance=10.0**place, gradient_variance=1.0, weight_gradient_norm=1.0)
        ] * 3
        results.append(
            Result(
                cell=cell,
                folder=folder / "runs" / cell.name,
                outcome="diverged" if lost else "done",
                reason="the loss is nan" if lost else "",
                values=dict.fromkeys(MEASURES) | {"val_score": score},
                epochs=[] if score is None else epochs(0.1, score),
                at_start=layers,
            )
        )
    return results


def test_answers_tables_curves_and_what_went_wrong_are_on_every_page(tmp_path: Path) -> None:
    study = declared(StudyConfig(study="regularisation"), "regularisation")
    study = replace(
        study,
        title="A <b>title</b>",
        questions=(Question(ask="Does dropout help?", measure="val_score", axis="regulariser",
                            compare=("dropout", "none"), where={}), *study.questions[-1:]),
    )  # fmt: skip
    study_report.write(tmp_path, study, made(study, tmp_path))
    facts = json.loads((tmp_path / "study.json").read_text())
    sentence = facts["answers"][0]["sentence"]
    assert sentence == (
        "Dropout scored 0.101 on validation images against 0.001 of none "
        "(difference +0.100, 95 % interval +0.100 to +0.100, 3 seeds)."
    )
    page, markdown = ((tmp_path / f"study.{kind}").read_text() for kind in ("html", "md"))
    for text in (page, markdown, study_report.summary(tmp_path)):
        assert sentence in text
        assert "24 runs: 21 done, 3 diverged. 3 diverged: regulariser=all,seed=0;" in text
    assert "A &lt;b&gt;title&lt;/b&gt;" in page
    assert page.count("data:image/svg+xml") == 4, "the page is one file"
    assert "<script" not in page
    for picture in ("val_score", "train_loss", "signal", "gradient"):
        assert f"figures/{picture}.svg" in markdown
        drawn = (tmp_path / "figures" / f"{picture}.svg").read_text()
        assert "batch norm and dropout" in drawn
    assert facts["results"][0]["run"] == "runs/regulariser=none,seed=0"
    with (tmp_path / "results.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 24
    assert float(rows[1]["val_score"]) == 0.1
    assert rows[7]["val_score"] == ""


def test_a_study_of_which_nothing_was_run_says_so(tmp_path: Path) -> None:
    study = grid.read(grid_file(tmp_path))
    results = [
        replace(one, outcome="not run", values=dict.fromkeys(MEASURES), epochs=[], at_start=[], reason="")
        for one in made(study, tmp_path)
    ]
    study_report.write(tmp_path, study, results)
    assert "No run that was asked of has a value." in (tmp_path / "study.html").read_text()
    assert "2 not run" in study_report.summary(tmp_path)


def grid_file(folder: Path) -> Path:
    path = folder / "own.yaml"
    path.write_text("axes: {activation: [relu, tanh]}\nseeds: 1\n")
    return path
