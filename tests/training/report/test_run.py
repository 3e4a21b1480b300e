import csv
import html
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import yaml

from tests.support.pages import References
from tests.support.paths import ROOT
from training.options.config import TrainConfig
from training.report.run import run_summary
from training.train import train

HOSTILE = '<img src=x onerror=alert(1)> | "'


@pytest.mark.parametrize(("table", "split"), [("predictions.csv", "test"), ("predictions-val.csv", "val")])
def test_predictions_hold_every_image_of_their_split_once(table: str, split: str, run: Path) -> None:
    report = json.loads((run / "report" / "report.json").read_text())
    with (run / table).open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len({row["path"] for row in rows}) == len(rows) == report["scores"][split]["images"]
    names = report["card"]["classes"]
    for row in rows:
        values = [float(row[name]) for name in names]
        assert sum(values) == pytest.approx(1, abs=1e-5)
        assert row["predicted"] == names[values.index(max(values))]
    accuracy = sum(row["true"] == row["predicted"] for row in rows) / len(rows)
    assert accuracy == report["scores"][split]["accuracy"]


def test_the_tables_of_both_splits_have_the_same_columns_and_no_image_in_common(run: Path) -> None:
    test, validation = (
        list(csv.DictReader((run / name).read_text().splitlines()))
        for name in ("predictions.csv", "predictions-val.csv")
    )
    assert [*test[0]] == [*validation[0]]
    assert not {row["path"] for row in test} & {row["path"] for row in validation}


def test_risk_coverage_begins_with_the_accuracy_of_all_test_images(run: Path) -> None:
    report = json.loads((run / "report" / "report.json").read_text())
    test, found = report["scores"]["test"], report["risk_coverage"]
    assert found["curve"][0] == [0, test["accuracy"]]
    assert found["referrals"][0]["accuracy"] == test["accuracy"]
    assert all(point["handed_over"] + point["kept"] == test["images"] for point in found["referrals"])


def test_the_page_opens_offline(run: Path) -> None:
    text = (run / "report" / "report.html").read_text()
    page = References()
    page.feed(text)
    assert page.found
    assert all(reference.startswith("data:") for reference in page.found)
    assert "script" not in page.tags
    assert "url(" not in text
    assert "@import" not in text
    assert len(text) < 3_000_000


@pytest.fixture(scope="module")
def doubtful(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on gray pictures that no model can distinguish, 90 of one class and 10 of another with a hostile name."""
    root = tmp_path_factory.mktemp("doubtful")
    for number in range(100):
        path = root / "data" / ("common" if number % 10 else HOSTILE) / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(number).integers(127, 130, (16, 16, 3), dtype=np.uint8)
        assert cv2.imwrite(str(path), pixels)
    return train(
        TrainConfig(
            data=root / "data",
            out=root,
            name="x",
            model="mlp",
            hidden=(8,),
            image_size=8,
            epochs=10,
            lr=1e-2,
            augment="none",
        )
    )


def test_class_names_cannot_write_html(doubtful: Path) -> None:
    text = (doubtful / "report" / "report.html").read_text()
    page = References()
    page.feed(text)
    assert HOSTILE not in text
    assert "&lt;img src=x onerror=alert(1)&gt; | &#34;" in text
    assert all(reference.startswith("data:") for reference in page.found)


def test_mistakes_on_validation_images_are_shown_and_those_on_test_images_are_folded(doubtful: Path) -> None:
    text = html.unescape((doubtful / "report" / "report.html").read_text())
    shown, folded = text.split("<h2>Most confident mistakes</h2>")[1].split("<h2>")[0].split("<details>")
    for part, table in ((shown, "predictions-val.csv"), (folded, "predictions.csv")):
        rows = csv.DictReader((doubtful / table).read_text().splitlines())
        wrong = {row["path"] for row in rows if row["true"] != row["predicted"]}
        assert wrong
        assert {key for key in wrong if f'alt="{key}"' in part} == wrong
        assert part.count("<figure>") == len(wrong)
    assert "predictions-val.csv" in shown


def test_what_makes_a_model_doubtful_is_on_the_first_screen_and_on_the_console(doubtful: Path) -> None:
    said = json.loads((doubtful / "report" / "report.json").read_text())["warnings"]
    assert "The model predicts common for every test image." in said
    assert "Always predicting common is right at least as often: 92.9%." in said
    assert "14 validation images are too few for a temperature and for prediction sets at a level of 90%." in said
    assert any("too few test images for a precise recall" in line for line in said)
    first_screen = html.unescape((doubtful / "report" / "report.html").read_text().split("<h2>")[0])
    assert "<code>latest</code>" in first_screen
    first_screen = re.sub("</?code>", "`", first_screen)
    for line in said:
        assert line in first_screen
        assert f"warning: {line}" in run_summary(doubtful)
    card = json.loads((doubtful / "report" / "report.json").read_text())["card"]
    unfitted: dict[str, object] = {
        "temperature": 1.0,
        "level": 0.9,
        "threshold": None,
        "bias": [],
        "class_thresholds": [],
        "prior_correction": None,
    }
    assert card["calibration"] == unfitted


def test_a_score_of_no_class_is_null(doubtful: Path) -> None:
    report = json.loads((doubtful / "report" / "report.json").read_text())
    hostile = next(row for row in report["scores"]["test"]["by_class"] if row["name"] == HOSTILE)
    assert hostile["precision"] is None, "nothing was answered with it"
    assert hostile["recall"] == 0
    assert report["intervals"]["precision"][HOSTILE] is None


def test_the_summary_says_results_places_and_the_next_command(run: Path) -> None:
    text = run_summary(run)
    assert re.search(r"accuracy +1\.0000 +1\.0000 +1\.0000", text)
    assert "Parity held on all 12 test images" in text
    for path in ("report/report.html", "model.onnx"):
        assert str(run / path) in text
    assert f"TWINLENS_MODEL={run}/model.onnx bentoml serve --host 127.0.0.1" in text


def test_bentoml_alone_serves_what_latest_of_this_folder_leads_to(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for out in (Path("runs"), Path("experiments/runs")):
        out.mkdir(parents=True)
        shutil.copytree(run, out / "x")
        (out / "latest").symlink_to("x")
    assert run_summary(Path("runs/x")).endswith("serve   bentoml serve --host 127.0.0.1")
    assert "TWINLENS_MODEL=" in run_summary(Path("experiments/runs/x"))
    assert run_summary(tmp_path / "runs" / "x").endswith("serve   bentoml serve --host 127.0.0.1")


@pytest.mark.parametrize("fixture", ["run", "doubtful"])
def test_the_model_card_is_markdown_with_front_matter(fixture: str, request: pytest.FixtureRequest) -> None:
    folder: Path = request.getfixturevalue(fixture)
    report = json.loads((folder / "report" / "report.json").read_text())
    _, front, text = (folder / "report" / "report.md").read_text().split("---\n", 2)
    matter = yaml.safe_load(front)
    assert (matter["library_name"], matter["pipeline_tag"]) == ("onnx", "image-classification")
    [result] = matter["model-index"][0]["results"]
    assert matter["model-index"][0]["name"] == report["run"]
    values = {metric["type"]: metric["value"] for metric in result["metrics"]}
    assert values["accuracy"] == pytest.approx(report["scores"]["test"]["accuracy"], abs=5e-5)
    for heading in ("Intended use", "How to use", "Data", "Scores", "Confidence", "Parity", "Limits", "Environment"):
        assert f"\n## {heading}\n" in text
    assert "not a medical device" in text
    assert "768 of 768" in text
    for table in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE):
        assert len({len(re.findall(r"(?<!\\)\|", row)) for row in table.splitlines()}) == 1, table


def test_scores_by_class_carry_their_intervals(run: Path) -> None:
    text = (run / "report" / "report.md").read_text()
    assert "| Red rash | 1.000 (0.510 to 1.000) | 1.000 (0.510 to 1.000) | 1.000 | 4 |" in text, "Wilson's of 4 in 4"


@pytest.mark.slow
def test_the_model_outlives_a_disk_that_fills_while_the_report_is_written(
    photos: Path, tmp_path: Path, run: Path
) -> None:
    """In a mount of its own, with room for all that the run leaves but for half of the report."""
    report = [path for path in [*(run / "report").rglob("*"), *run.glob("*.csv")] if path.is_file()]
    other = [path for path in run.rglob("*") if path.is_file() and path not in report]
    files = {path.stat().st_ino: path for path in other}.values()  # a checkpoint may have two names
    room = sum(blocks(path) for path in files) + sum(blocks(path) for path in report) // 2
    options = f"--data {photos} --name full --model mlp --hidden 32 --image-size 24 --epochs 4 --batch-size 16"
    options += f" --cache {run.parent / '.cache'}"
    mount = f"mount -t tmpfs -o size={room} none {tmp_path}"
    train_and_list = f"{sys.executable} -m training {options} --out {tmp_path}; echo exit $?; ls -A {tmp_path}/full"
    if subprocess.run(["unshare", "-rm", "sh", "-c", mount], capture_output=True, check=False).returncode:
        pytest.skip("mounts are not allowed here")
    done = subprocess.run(
        ["unshare", "-rm", "sh", "-c", f"{mount} && {train_and_list}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert "the report could not be written (No space left on device), but the model is complete" in done.stderr
    assert f"{tmp_path}/full/model.onnx" in done.stderr
    assert "exit 6" in done.stdout
    left = done.stdout.split("exit 6\n")[1].split()
    assert "model.onnx" in left
    assert not {"report", ".report", "predictions.csv", "predictions-val.csv"} & set(left)


def blocks(path: Path) -> int:
    return -(-path.stat().st_size // 4096) * 4096
