"""The eight-bit file of a run is judged by its own answers."""

import json
from pathlib import Path
from typing import Any

import pytest

from serving.contract.model import open_model
from tests.support.promotions import latest, make
from training.data.dataset import Dataset
from training.options.settled import SettledConfig
from training.promotion import eight_bits
from training.promotion.outcome import RunJudge

pytestmark = pytest.mark.slow  # trainings with both files


def quantized(run: Path) -> dict[str, Any]:
    facts: dict[str, Any] = json.loads((run / "report" / "report.json").read_text())["quantized"]
    return facts


def test_it_has_a_certificate_of_its_own(photos: Path, tmp_path: Path) -> None:
    run = make(photos, tmp_path, name="x", quantize="int8")
    assert quantized(run)["published"]
    card = open_model(run / "model.int8.onnx").card
    assert card.certificate is not None
    assert card.certificate.balanced_accuracy == card.scores["balanced_accuracy"].value
    assert "The rule of promotion holds for its own answers." in (run / "report" / "report.html").read_text()


def test_it_is_not_published_where_the_rule_does_not_hold_for_it(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run is promoted, and what `latest` leads to has no eight-bit file."""
    whole = eight_bits.eight_bits

    def of_one_class(config: SettledConfig, dataset: Dataset, judge: RunJudge | None) -> Any:
        assert judge is not None
        always = judge.answers.probabilities.copy()
        always[:] = [1] + [0] * (always.shape[1] - 1)
        return whole(config, dataset, lambda probabilities, intervals: judge(always, intervals))  # type: ignore[arg-type]

    monkeypatch.setattr("training.train.eight_bits", of_one_class)
    run = make(photos, tmp_path, name="x", quantize="int8")
    assert latest(tmp_path) == "x"
    assert not (run / "model.int8.onnx").exists()
    assert quantized(run)["faults"] == ["it gives every test image the class Red rash"]
    report = (run / "report" / "report.html").read_text()
    assert "the rule of promotion does not hold for its own answers: it gives every test image" in report


def test_without_a_rule_nothing_is_certified(photos: Path, tmp_path: Path) -> None:
    run = make(photos, tmp_path, name="x", quantize="int8", promote="always")
    assert (quantized(run)["certificate"], quantized(run)["faults"]) == (None, [])
    assert open_model(run / "model.int8.onnx").card.certificate is None
