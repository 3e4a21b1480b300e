from pathlib import Path

import optuna
import pytest
from optuna.trial import TrialState

from training.__main__ import main
from training.config_file import from_yaml
from training.engine import history
from training.engine.runs import JOURNAL
from training.errors import ConfigError
from training.study import spec
from training.study.command import study
from training.study.config import StudyConfig
from training.study.search import BEST, chosen, distributions, open_journal

SPACE = """
base: {model: mlp, hidden: [8], image_size: 16, batch_size: 16, epochs: 200, augment: none}
axes:
  lr: {low: 0.001, high: 0.01, log: true}
  init: [constant, he_normal]
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "space.yaml"
    path.write_text(text)
    return path


def test_lists_are_chosen_from_and_ranges_drawn_from(tmp_path: Path) -> None:
    text = "axes:\n  hidden: [[8], [16, 8]]\n  patience: {low: 2, high: 9}\n  lr: {low: 1e-4, high: 0.1, log: true}\n"
    space = spec.read(write(tmp_path, text))
    assert spec.read(write(tmp_path, spec.to_yaml(space))) == space
    optuna_study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    drawn = [chosen(space, optuna_study.ask(distributions(space)).params) for _ in range(200)]
    assert {options["hidden"] for options in drawn} == {(8,), (16, 8)}
    assert {options["patience"] for options in drawn} == set(range(2, 10))
    assert 60 < sum(options["lr"] < 0.1**2.5 for options in drawn) < 140, "half of a logarithmic range"
    assert all(1e-4 <= options["lr"] <= 0.1 for options in drawn)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("axes:\n  lr: {low: 0.1, high: 0.01}", "line 2: lr: expected low below high, got 0.1 and 0.01"),
        ("axes:\n  dropout: {low: 0, high: 0.5, log: true}", "and above 0, got"),
        ("axes:\n  augment: {low: none, high: strong}", "line 2: augment is not a number, so it has no range"),
        ("axes:\n  rate: {low: 0, high: 1}", "line 2: there is no option 'rate'"),
        ("axes:\n  lr: {low: 0.1, high: 1, step: 2}", "line 2: there is no 'step'; there are low, high, log"),
    ],
)
def test_a_range_that_cannot_be_drawn_from_is_refused_by_line(tmp_path: Path, text: str, expected: str) -> None:
    with pytest.raises(ConfigError, match=expected):
        spec.read(write(tmp_path, text))


def test_a_grid_has_no_ranges(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="lr: a range is for `study search`"):
        study(StudyConfig(study=str(write(tmp_path, SPACE)), out=tmp_path))


def test_a_trial_that_was_running_when_the_search_was_killed_is_queued_again(tmp_path: Path) -> None:
    space = spec.read(write(tmp_path, SPACE))
    lost = open_journal(tmp_path).ask(distributions(space))
    again = open_journal(tmp_path).ask(distributions(space))
    assert again.number == lost.number + 1
    assert again.params == lost.params
    assert (tmp_path / JOURNAL).stat().st_size > 0


@pytest.mark.slow
def test_a_search_finds_what_learns_stops_what_does_not_and_can_be_continued(photos: Path, tmp_path: Path) -> None:
    command = [
        "study",
        "search",
        str(write(tmp_path, SPACE)),
        "--data",
        str(photos),
        "--out",
        str(tmp_path / "studies"),
    ]
    assert main([*command, "--trials", "4"]) == 0
    assert main([*command, "--trials", "12"]) == 0
    folder = tmp_path / "studies" / "space"
    best = from_yaml(folder / BEST)
    assert best.init == "he_normal"
    assert best.lr is not None
    assert 0.001 <= best.lr <= 0.01
    trials = open_journal(folder).trials
    assert len(trials) == 12
    pruned = [trial for trial in trials if trial.state == TrialState.PRUNED]
    assert pruned
    assert {trial.params["init"] for trial in pruned} == {"constant"}
    histories = [history.read(folder / "runs" / f"trial={trial.number},seed=0") for trial in pruned]
    assert min(len(record.epochs) for record in histories if record) < 200, "stopped, and not only judged at its end"
    assert main(["--config", str(folder / BEST), "--out", str(tmp_path), "--name", "best", "--epochs", "1"]) == 0
