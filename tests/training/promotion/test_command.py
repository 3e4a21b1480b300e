"""`promote` and `rollback`."""

from pathlib import Path

import pytest

from serving.contract.files.names import signature_of
from tests.support.promotions import copied, latest, log
from tests.support.trainer import command
from training.__main__ import main
from training.engine.runs import FORGOTTEN, HAS_LEARNED
from training.engine.transfer import inherit
from training.errors import CheckpointRefused
from training.options.config import TrainConfig
from training.promotion.outcome import leave_pending, settle


@pytest.fixture
def runs(two: Path, tmp_path: Path) -> Path:
    return copied(two, tmp_path / "runs")


@pytest.mark.slow
def test_promote_and_rollback_as_a_person_types_them(runs: Path) -> None:
    refused = command("promote", "runs/poor", cwd=runs.parent)
    assert refused.returncode == 1
    assert "error: runs/poor is not promoted" in refused.stderr
    assert "does not exclude a loss of more than --margin 0.02" in refused.stderr
    assert latest(runs) == "good"
    assert log(runs)[-1]["event"] == "refused"
    forced = command("promote", "runs/poor", "--force", "--reason", "a demonstration", cwd=runs.parent)
    assert forced.returncode == 0, forced.stderr
    assert forced.stdout == "runs/latest points to poor; logged in runs/promotions.jsonl\n"
    assert latest(runs) == "poor"
    entry = log(runs)[-1]
    assert (entry["event"], entry["run"], entry["reason"]) == ("promoted", "poor", "a demonstration")
    assert entry["faults"], "why the rule did not hold is not lost"
    assert entry["numbers"]["champion"]["difference"] < 0
    back = command("rollback", "--reason", "it is over", cwd=runs.parent)
    assert back.returncode == 0, back.stderr
    assert (latest(runs), log(runs)[-1]["event"]) == ("good", "rolled back")
    again = command("rollback", cwd=runs.parent)
    assert again.returncode == 2
    assert "nothing to roll back to: good was the first" in again.stderr


def test_a_better_run_needs_no_force(runs: Path) -> None:
    (runs / "latest").unlink()
    (runs / "latest").symlink_to("poor")
    assert main(["promote", str(runs / "good")]) == 0
    assert latest(runs) == "good"
    champion = log(runs)[-1]["numbers"]["champion"]
    assert champion["interval"][0] > 0
    before = (runs / "promotions.jsonl").read_bytes()
    assert main(["promote", str(runs / "good")]) == 0, "it is served already"
    assert (runs / "promotions.jsonl").read_bytes() == before


@pytest.mark.parametrize(
    ("name", "code", "said"),
    [
        ("absent", 2, "expected a run's own folder"),
        ("latest", 2, "expected a run's own folder"),
        ("begun", 2, "it has no model with a report; --resume"),
        ("damaged", 7, "not a graph that onnxruntime can run"),
    ],
)
def test_what_is_no_complete_run_is_refused(
    runs: Path, capsys: pytest.CaptureFixture[str], name: str, code: int, said: str
) -> None:
    (runs / "begun").mkdir()
    (runs / "begun" / "config.yaml").write_bytes((runs / "good" / "config.yaml").read_bytes())
    (copied(runs / "poor", runs / "damaged") / "model.onnx").write_bytes(b"damaged")
    assert main(["promote", str(runs / name), "--force", "--reason", "x"]) == code
    assert said in capsys.readouterr().err
    assert latest(runs) == "good"


def test_force_needs_a_reason(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["promote", str(runs / "poor"), "--force", "--reason", " "]) == 2
    assert "--force: expected a --reason" in capsys.readouterr().err


def test_answers_of_an_older_version_are_no_proof(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (runs / "poor" / "predictions.csv").unlink()
    assert main(["promote", str(runs / "poor")]) == 1
    assert "its answers were not recorded" in capsys.readouterr().err


def test_other_test_images_are_not_compared_without_the_images(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = runs / "good" / "report" / "report.json"
    report.write_text(report.read_text().replace('"test_digest": "', '"test_digest": "f'))
    assert main(["promote", str(runs / "poor")]) == 1
    assert "it was scored on other test images, and no images are read here" in capsys.readouterr().err


def test_rollback_trusts_neither_a_link_nor_a_file_that_it_does_not_know(
    runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["promote", str(runs / "poor"), "--force", "--reason", "x"]) == 0
    (runs / "latest").unlink()
    (runs / "latest").symlink_to("elsewhere")
    assert main(["rollback", "--out", str(runs)]) == 2
    assert "points to elsewhere, and" in capsys.readouterr().err
    (runs / "latest").unlink()
    assert main(["rollback", "--out", str(runs)]) == 2
    assert "does not exist, and" in capsys.readouterr().err
    (runs / "latest").symlink_to("poor")
    (runs / "good" / "model.onnx").write_bytes(b"another")
    assert main(["rollback", "--out", str(runs)]) == 2
    assert "it is not the file that was served, by its digest" in capsys.readouterr().err
    (runs / "good" / "model.onnx").unlink()
    assert main(["rollback", "--out", str(runs)]) == 2
    assert "no such file, so `latest` cannot go back to it" in capsys.readouterr().err
    assert latest(runs) == "poor"
    assert main(["rollback", "--out", str(runs / "absent")]) == 2


def test_what_is_not_signed_takes_the_place_of_nothing_signed(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A service with a key would refuse it, and could not start again."""
    assert main(["promote", str(runs / "poor"), "--force", "--reason", "x"]) == 0
    signature_of(runs / "poor" / "model.onnx").write_bytes(b"signature")
    assert main(["promote", str(runs / "good")]) == 1
    assert "it is not signed, as what `latest` serves is" in capsys.readouterr().err
    assert main(["rollback", "--out", str(runs)]) == 2
    assert "it is not signed, as what `latest` serves is" in capsys.readouterr().err
    assert latest(runs) == "poor"
    leave_pending(runs / "good", "always", None)
    settle(runs / "good", "always")
    assert (latest(runs), log(runs)[-1]["event"]) == ("poor", "refused")
    signature_of(runs / "good" / "model.onnx").write_bytes(b"signature")
    assert main(["promote", str(runs / "good")]) == 0
    assert latest(runs) == "good"


def test_what_has_learned_from_forgotten_images_is_promoted_by_no_resumption(runs: Path) -> None:
    (runs / "poor" / FORGOTTEN).write_text("{}")
    leave_pending(runs / "poor", "always", None)
    settle(runs / "poor", "always")
    assert latest(runs) == "good"
    assert log(runs)[-1]["faults"] == [HAS_LEARNED]
    with pytest.raises(CheckpointRefused, match="depend on images that were forgotten"):
        inherit(TrainConfig(init_from=runs / "poor"))


def test_a_link_that_was_moved_by_hand_enters_the_log(runs: Path) -> None:
    (runs / "latest").unlink()
    (runs / "latest").symlink_to("poor")
    assert main(["promote", str(runs / "poor"), "--force", "--reason", "it is served"]) == 0
    entry = log(runs)[-1]
    assert (entry["event"], entry["run"], entry["reason"]) == ("promoted", "poor", "it is served")
    assert main(["rollback", "--out", str(runs)]) == 0
    assert latest(runs) == "good"
