import csv
import json
from dataclasses import replace
from html import unescape
from pathlib import Path

from tests.support.studies import invented_results
from training.study.config import StudyConfig, declared
from training.study.measures import MEASURES
from training.study.report import study_summary, write_study_report
from training.study.spec import document
from training.study.spec.grid import Question


def test_answers_tables_curves_and_what_went_wrong_are_on_every_page(tmp_path: Path) -> None:
    study = declared(StudyConfig(study="regularisation"), "regularisation")
    study = replace(
        study,
        title="A <b>title</b>",
        questions=(Question(ask="Does dropout help?", measure="val_score", axis="regulariser",
                            compare=("dropout", "none"), where={}), *study.questions[-1:]),
    )  # fmt: skip
    write_study_report(tmp_path, study, invented_results(study, tmp_path))
    facts = json.loads((tmp_path / "study.json").read_text())
    sentence = facts["answers"][0]["sentence"]
    assert sentence == (
        "Dropout scored 0.101 on validation images against 0.001 of none "
        "(difference +0.100, 95 % interval +0.100 to +0.100, 3 seeds, corrected p < 0.001)."
    )
    page, markdown = ((tmp_path / f"study.{kind}").read_text() for kind in ("html", "md"))
    for text in (page, markdown, study_summary(tmp_path)):
        assert sentence in (unescape(text) if text is page else text)
        assert "24 runs: 21 done, 3 diverged. 3 diverged: regulariser=all,seed=0;" in text
    for text in (page, markdown):
        assert "intervals and verdicts are about trainings on these images" in " ".join(text.split())
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
    study = document.read(grid_file(tmp_path))
    results = [
        replace(one, outcome="not run", values=dict.fromkeys(MEASURES), epochs=[], at_start=[], reason="")
        for one in invented_results(study, tmp_path)
    ]
    write_study_report(tmp_path, study, results)
    assert "No run that the question concerns has a value." in (tmp_path / "study.html").read_text()
    assert "2 not run" in study_summary(tmp_path)


def grid_file(folder: Path) -> Path:
    path = folder / "own.yaml"
    path.write_text("axes: {activation: [relu, tanh]}\nseeds: 1\n")
    return path
