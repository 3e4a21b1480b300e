"""What a run does to `latest` at its end."""

import json
import re
import shutil
import time
from pathlib import Path
from typing import Any

import pytest

from serving.contract.model import open_model
from tests.support.promotions import POOR, copied, latest, log, make, options
from tests.support.trainer import After
from training.__main__ import main
from training.__main__ import options as parsed
from training.engine.runs import PENDING_PROMOTION, is_finished
from training.engine.train_state import RunContext
from training.errors import ConfigError, Interrupted
from training.metrics.evaluation import Evaluation
from training.promotion.outcome import settle
from training.report.run import run_summary
from training.storage import digest
from training.train import train


def reported(run: Path) -> dict[str, Any]:
    facts: dict[str, Any] = json.loads((run / "report" / "report.json").read_text())["promotion"]
    return facts


def test_a_first_run_is_certified_and_served(two: Path) -> None:
    first = log(two)[0]
    assert (first["event"], first["run"], first["replaced"]) == ("promoted", "good", None)
    card = open_model(two / "good" / "model.onnx").card
    assert card.certificate is not None
    assert card.certificate.champion is None
    report = json.loads((two / "good" / "report" / "report.json").read_text())
    assert report["promotion"]["outcome"] == "promoted"
    assert report["promotion"]["measured"] == first["numbers"]
    for name in ("report.md", "report.html"):
        page = (two / "good" / "report" / name).read_text()
        assert page.count(f"latest{'`' if name == 'report.md' else '</code>'} moved to it at {first['time']}") == 1
        assert "No model was served, so there was none to compare with" in page
    assert card.certificate.test_split == report["data"]["test_digest"] == first["numbers"]["test_split"]
    assert card.certificate.balanced_accuracy == report["scores"]["test"]["balanced_accuracy"]


def test_a_worse_run_ends_well_and_leaves_latest(two: Path) -> None:
    assert latest(two) == "good"
    refused = log(two)[-1]
    assert (refused["event"], refused["run"]) == ("refused", "poor")
    assert refused["numbers"]["champion"]["digest"] == digest(two / "good" / "model.onnx")
    assert "does not exclude a loss of more than --margin 0.02" in refused["faults"][-1]
    assert open_model(two / "poor" / "model.onnx").card.certificate is None
    assert is_finished(two / "poor")
    assert f"promote {two / 'poor'} --force" in run_summary(two / "poor")
    report = json.loads((two / "poor" / "report" / "report.json").read_text())["promotion"]
    assert (report["outcome"], report["promote"], report["time"]) == ("refused", "better", refused["time"])
    assert report["measured"] == refused["numbers"]
    assert report["faults"] == refused["faults"]
    champion = report["measured"]["champion"]
    for name in ("report.md", "report.html"):
        page = (two / "poor" / "report" / name).read_text().replace("&#34;", '"').replace("<code>", "`")
        first_screen, _, section = page.partition("<!-- promotion section -->")
        assert f"`python -m training promote {two / 'poor'} --force" in first_screen
        for part in ("Outcome: refused", f"{champion['difference']:+.3f}", champion["digest"], "Sign-flip p"):
            assert part in section.partition("<!-- end -->")[0], name


@pytest.mark.slow
def test_an_equal_run_replaces_it_and_always_asks_nothing(photos: Path, two: Path, tmp_path: Path) -> None:
    out = copied(two, tmp_path / "runs")
    equal = make(photos, out, name="equal")
    assert latest(out) == "equal"
    certificate = open_model(equal / "model.onnx").card.certificate
    assert certificate is not None
    assert certificate.champion is not None
    assert (certificate.champion.difference, certificate.champion.interval) == (0, (0, 0))
    assert (certificate.champion.p_value, certificate.margin) == (1, 0.02)
    assert certificate.champion.digest == digest(out / "good" / "model.onnx")
    forced = make(photos, out, name="any", promote="always", **POOR)
    assert latest(out) == "any"
    assert open_model(forced / "model.onnx").card.certificate is None
    assert (log(out)[-1]["numbers"], log(out)[-1]["reason"]) == (None, "--promote always")
    make(photos, out, name="aside", promote="never")
    assert latest(out) == "any"
    assert log(out)[-1]["run"] == "any"


@pytest.mark.long
def test_a_first_run_that_misses_a_floor_or_chance_is_served_by_nothing(photos: Path, tmp_path: Path) -> None:
    make(photos, tmp_path, name="x", floor=("sensitivity:blue=0.99",))
    assert latest(tmp_path) is None
    [entry] = log(tmp_path)
    assert entry["faults"][0].startswith("--floor sensitivity:blue=0.99: the 95 % interval begins at 0.")
    with pytest.raises(ConfigError, match="there is no class 'Blue'"):
        make(photos, tmp_path, name="y", floor=("sensitivity:Blue=0.5",))
    with pytest.raises(ConfigError, match="expected NAME=VALUE"):
        make(tmp_path / "no data", tmp_path, name="y", floor=("recall=0.5",))
    assert not (tmp_path / "y" / "config.yaml").exists()
    make(photos, tmp_path, name="z", **POOR)
    assert latest(tmp_path) is None


@pytest.mark.long
def test_on_another_test_split_the_old_file_answers(photos: Path, two: Path, tmp_path: Path) -> None:
    out = copied(two, tmp_path / "runs")
    (out / "good" / "predictions.csv").unlink()  # nothing to read: the file itself must answer
    make(photos, out, name="other", seed=1, image_size=24)
    entry = log(out)[-1]
    assert entry["numbers"]["test_split"] != log(out)[0]["numbers"]["test_split"]
    assert entry["numbers"]["champion"]["score"] > 0.9
    assert latest(out) == "other"
    make(photos, out, name="poor on the other", seed=1, **POOR)
    assert latest(out) == "other"
    make(photos, out, name="as the first", **POOR)
    assert re.search(r"has learned from \d+ of these images, its score is too high", log(out)[-1]["faults"][-1])


@pytest.mark.long
def test_other_classes_are_not_comparable(photos: Path, two: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    for name in ("blue", "green leaf"):
        shutil.copytree(photos / name, data / name)
    out = copied(two, tmp_path / "runs")
    run = make(data, out, name="two")
    assert latest(out) == "good"
    assert "other classes, only here: none; only there: Red rash" in log(out)[-1]["faults"][0]
    assert open_model(run / "model.onnx").card.certificate is None
    make(data, out, name="meant", promote="always")
    assert latest(out) == "meant"


@pytest.mark.long
def test_a_latest_that_is_not_ours(photos: Path, two: Path, tmp_path: Path) -> None:
    elsewhere = copied(two, tmp_path / "elsewhere")
    out = tmp_path / "runs"
    out.mkdir()
    (out / "latest").symlink_to("../elsewhere/good")
    make(photos, out, name="poor", **POOR)
    assert latest(out) == "../elsewhere/good", "what is served is compared with, wherever it is"
    make(photos, out, name="equal")
    assert (latest(out), log(out)[-1]["replaced"]) == ("equal", "../elsewhere/good")
    assert main(["rollback", "--out", str(out)]) == 0
    assert latest(out) == "../elsewhere/good"
    (elsewhere / "good" / "model.onnx").write_bytes(b"damaged")
    make(photos, out, name="next")
    assert latest(out) == "../elsewhere/good"
    assert "its file cannot be read" in log(out)[-1]["faults"][0]
    shutil.rmtree(elsewhere)
    make(photos, out, name="after")
    assert latest(out) == "after", "a link that leads nowhere serves nothing"


def test_a_latest_that_is_a_folder_ends_before_the_training(photos: Path, tmp_path: Path) -> None:
    (tmp_path / "latest").mkdir()
    with pytest.raises(ConfigError, match="latest is no link"):
        make(photos, tmp_path, name="x")


def test_a_log_that_cannot_be_written_ends_before_the_training(photos: Path, tmp_path: Path) -> None:
    (tmp_path / "promotions.jsonl").mkdir()
    with pytest.raises(OSError, match=r"Is a directory: .*promotions\.jsonl"):
        make(photos, tmp_path, name="x")
    assert not (tmp_path / "x" / "config.yaml").exists()


def test_a_resumed_run_keeps_what_it_declared(photos: Path, two: Path, tmp_path: Path) -> None:
    out = copied(two, tmp_path / "runs")
    with pytest.raises(Interrupted):
        train(options(photos, out, name="x", margin=0.1, floor=("accuracy=0.5",), **POOR), After(1))
    again = ["--resume", str(out / "x"), "--floor", "accuracy=0.5"]
    assert main([*again, "--margin", "0.5"]) == 7
    assert main(again) == 0
    assert (latest(out), log(out)[-1]["numbers"]["margin"]) == ("good", 0.1)
    assert log(out)[-1]["faults"][-2].startswith("--floor accuracy=0.5")


def test_a_run_that_was_killed_before_it_was_settled_is_settled_when_resumed(two: Path, tmp_path: Path) -> None:
    out = copied(two, tmp_path / "runs")
    again = parsed("train", ["--resume", str(out / "poor")])
    (out / "poor" / PENDING_PROMOTION).write_text('{"promote": "always", "judgement": null}')
    train(again)
    assert latest(out) == "poor"
    assert reported(out / "poor")["outcome"] == "promoted"
    moved = (out / "promotions.jsonl").read_bytes()
    (out / "poor" / PENDING_PROMOTION).write_text('{"promote": "always", "judgement": null}')  # killed after the move
    train(again)
    assert (out / "promotions.jsonl").read_bytes() == moved
    assert not (out / "poor" / PENDING_PROMOTION).exists()
    assert (reported(out / "poor")["outcome"], reported(out / "poor")["time"]) == ("promoted", None)
    (out / "good" / PENDING_PROMOTION).touch()  # as older versions left it
    train(parsed("train", ["--resume", str(out / "good")]))
    assert latest(out) == "poor"
    assert "older version" in log(out)[-1]["faults"][0]


def test_another_promote_than_that_of_the_start_holds_for_what_is_not_settled(two: Path, tmp_path: Path) -> None:
    out = copied(two, tmp_path / "runs")
    judged = {"measured": log(out)[0]["numbers"], "faults": [], "rival": digest(out / "good" / "model.onnx")}
    moved, resume = (out / "promotions.jsonl").read_bytes(), ["--resume", str(out / "poor")]
    (out / "poor" / PENDING_PROMOTION).write_text(json.dumps({"promote": "better", "judgement": judged}))
    assert main([*resume, "--promote", "never"]) == 0
    assert (latest(out), reported(out / "poor")["outcome"]) == ("good", "not asked")
    assert (out / "promotions.jsonl").read_bytes() == moved
    assert not (out / "poor" / PENDING_PROMOTION).exists()
    (out / "poor" / PENDING_PROMOTION).write_text(
        json.dumps({"promote": "better", "judgement": judged | {"faults": ["bad"]}})
    )
    assert main([*resume, "--promote", "always"]) == 0
    assert (latest(out), log(out)[-1]["reason"]) == ("poor", "--promote always")
    (out / "poor" / PENDING_PROMOTION).write_text('{"promote": "always", "judgement": null}')  # killed after the move
    assert main([*resume, "--promote", "never"]) == 0
    assert "by the rule `--promote always`" in reported(out / "poor")["sentence"]
    (out / "good" / PENDING_PROMOTION).touch()  # as older versions left it
    assert main(["--resume", str(out / "good"), "--promote", "always"]) == 0
    assert latest(out) == "good"


def test_a_judgement_holds_against_what_was_served_then(two: Path, tmp_path: Path) -> None:
    out = copied(two, tmp_path / "runs")
    judged = {"measured": log(out)[0]["numbers"], "faults": [], "rival": digest(out / "good" / "model.onnx")}
    shutil.copytree(out / "good", out / "new")
    (out / "new" / PENDING_PROMOTION).write_text(json.dumps({"promote": "better", "judgement": judged}))
    (out / "latest").unlink()
    (out / "latest").symlink_to("poor")  # another run ended meanwhile
    settle(out / "new", "better")
    assert latest(out) == "poor"
    assert "has moved to poor since it was judged" in log(out)[-1]["faults"][0]
    assert "has moved to poor since it was judged" in reported(out / "new")["sentence"]
    assert "has moved to poor since it was judged" in (out / "new" / "report" / "report.md").read_text()


@pytest.mark.slow
def test_a_report_says_that_nothing_is_settled_until_it_is(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(run: Path, promote: str) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("training.promotion.outcome.settle", killed)
        with pytest.raises(KeyboardInterrupt):
            make(photos, tmp_path, name="x")
    assert reported(tmp_path / "x")["outcome"] == "not settled"
    page = tmp_path / "x" / "report" / "report.html"
    assert "The rule of promotion holds, but it is not settled yet" in page.read_text()
    make(photos, tmp_path, name="x", resume="auto")
    assert reported(tmp_path / "x")["outcome"] == "promoted"
    assert "not settled" not in page.read_text()
    before = page.read_bytes(), (tmp_path / "x" / "report" / "report.md").read_bytes()
    (tmp_path / "x" / PENDING_PROMOTION).write_text('{"promote": "never", "judgement": null}')
    (tmp_path / "x" / "report" / "report.json").write_text("{}")  # as an older version wrote it
    settle(tmp_path / "x", "never")
    assert before == (page.read_bytes(), (tmp_path / "x" / "report" / "report.md").read_bytes())
    run = make(photos, tmp_path, name="y", promote="never")
    assert reported(run)["outcome"] == "not asked"
    assert "`--promote never`" in run_summary(run)


@pytest.mark.slow
def test_it_costs_less_than_two_seconds(
    photos: Path, two: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from training.promotion import outcome

    spent: list[float] = []

    def timed(context: RunContext, evaluation: Evaluation) -> outcome.RunJudge | None:
        start = time.perf_counter()
        judge = run_judge(context, evaluation)
        assert judge is not None
        judge(evaluation.probabilities["test"], evaluation.intervals)
        spent.append(time.perf_counter() - start)
        return judge

    run_judge = outcome.run_judge
    monkeypatch.setattr(outcome, "run_judge", timed)
    make(photos, copied(two, tmp_path / "runs"), name="x")
    assert len(spent) == 1
    assert spent[0] < 2
