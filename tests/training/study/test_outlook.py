"""From the reports of a study's runs to its sentences, on planted scores."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest

from tests.support.studies import invented_results
from training.study.conclusions import conclude
from training.study.outlook import image_outlook, seed_outlook
from training.study.report import study_summary, write_study_report
from training.study.results import RunResult
from training.study.sample_size import more_seeds
from training.study.spec.document import read

STUDY = """
axes:
  images_per_class: [50, 200, 800]
  activation: [relu, tanh]
seeds: 2
questions:
  - {ask: "relu or tanh?", measure: val_score, axis: activation, compare: [relu, tanh]}
"""


def planted(folder: Path, results: list[RunResult]) -> list[RunResult]:
    """Reports in which the error of relu is 0.1 + 2 / sqrt(n), of tanh 0.3 whatever n; recalls of a are the same."""
    made = []
    for result in results:
        size, relu = int(result.cell.levels["images_per_class"]), result.cell.levels["activation"] == "relu"
        score = 1 - (0.1 + 2 / math.sqrt(size) if relu else 0.3)
        by_class = [{"name": "a", "recall": score, "support": 40}, {"name": "b", "recall": 0.5, "support": 500}]
        by_class.append({"name": "c", "recall": 0.5, "support": 500})
        facts = {
            "data": {"classes": [{"name": name, "train": size} for name in "abc"]},
            "scores": {"test": {"balanced_accuracy": score, "by_class": by_class}},
        }
        (result.folder / "report").mkdir(parents=True)
        (result.folder / "report" / "report.json").write_text(json.dumps(facts))
        value = score + 0.001 * result.cell.seed * relu
        made.append(replace(result, outcome="done", reason="", values=result.values | {"val_score": value}))
    return made


def test_a_report_says_how_many_more_and_where_nothing_is_known(tmp_path: Path) -> None:
    """Error 0.1 + 2 / sqrt(800) = 0.1707; five points less at n = (2 / 0.0207)^2 = 9,330, 8,530 more.

    Of the classes b and c nothing is known for the same reason, which is one sentence.
    """
    (tmp_path / "few.yaml").write_text(STUDY)
    study = read(tmp_path / "few.yaml")
    results = planted(tmp_path, invented_results(study, tmp_path))
    of_training = [each for each in image_outlook(study, results) if "test images" not in each["sentence"]]
    found = {(each["runs"], each["of"]): each for each in of_training}
    assert list(found) == [
        ("activation relu", "balanced accuracy"),
        ("activation relu", "a"),
        ("activation relu", "b, c"),
        ("activation tanh", "balanced accuracy"),
    ]
    unknown = found["activation relu", "b, c"]["sentence"]
    assert "raise the recall of b, c by 5 points is not known: the curve is flat" in unknown
    assert found["activation relu", "a"]["more"] == pytest.approx(8530, rel=0.02)
    assert "more images of a than 800 for 5 points more of recall of a" in found["activation relu", "a"]["sentence"]
    assert "is not known: the curve is flat" in found["activation tanh", "balanced accuracy"]["sentence"]
    write_study_report(tmp_path, study, results)
    for text in ((tmp_path / "study.md").read_text(), study_summary(tmp_path)):
        assert "more test images of a than 40 for a 95 % interval of its recall of 5 points each way" in text
        assert "500 test images of b are enough" in text
    assert "<h2>How many more?</h2>" in (tmp_path / "study.html").read_text()


def test_open_questions_say_how_many_seeds_they_need(tmp_path: Path) -> None:
    (tmp_path / "few.yaml").write_text(STUDY)
    study = read(tmp_path / "few.yaml")
    results = planted(tmp_path, invented_results(study, tmp_path))
    shifted = [
        replace(
            result,
            values=result.values
            | {"val_score": 0.5 + (0.01 * (1 + result.cell.seed)) * (result.cell.levels["activation"] == "relu")},
        )
        for result in results
    ]
    [conclusion] = conclude(study.questions, shifted)
    assert conclusion is not None
    assert not conclusion.decided
    [seeds] = seed_outlook([conclusion])
    assert seeds["more"] is not None
    assert "relu against tanh" in seeds["sentence"]
    assert "more seeds decide it with a probability of 80 %" in seeds["sentence"]


def test_more_seeds_are_asked_for_where_the_data_chose_the_reference(tmp_path: Path) -> None:
    """Three levels have three pairs, all of which the corrected p values count."""
    (tmp_path / "many.yaml").write_text("axes: {activation: [relu, gelu, tanh]}\nseeds: 3")
    study = read(tmp_path / "many.yaml")
    scores = {"relu": (0.50, 0.52, 0.55), "gelu": (0.49, 0.50, 0.56), "tanh": (0.48, 0.53, 0.50)}
    results = [
        replace(
            one, outcome="done", values=one.values | {"val_score": scores[one.cell.levels["activation"]][one.cell.seed]}
        )
        for one in invented_results(study, tmp_path)
    ]
    conclusions = conclude(study.questions, results)
    assert conclusions[0] is not None
    rows = conclusions[0].differences
    assert len(rows) == 2
    needed = [more_seeds(row.value or 0.0, row.interval or (0.0, 0.0), 3, comparisons=3) for row in rows]
    assert needed != [more_seeds(row.value or 0.0, row.interval or (0.0, 0.0), 3, comparisons=2) for row in rows]
    assert [each["more"] for each in seed_outlook(conclusions)] == needed


def test_a_study_without_sizes_has_no_outlook_on_images(tmp_path: Path) -> None:
    (tmp_path / "other.yaml").write_text("axes: {activation: [relu, tanh]}")
    study = read(tmp_path / "other.yaml")
    assert image_outlook(study, invented_results(study, tmp_path)) == []
