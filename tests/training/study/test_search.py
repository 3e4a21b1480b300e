import json
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path

import optuna
import pytest
import yaml
from optuna.trial import Trial, TrialState

from tests.support.histories import epochs
from tests.support.postgres import postgres
from tests.support.processes import wait_until
from training.__main__ import main
from training.engine import history
from training.engine.history import History
from training.engine.runs import JOURNAL
from training.errors import ConfigError
from training.metrics.classification import TITLES
from training.options.config_file import from_yaml
from training.study import trials
from training.study.command import study
from training.study.config import StudyConfig
from training.study.folder import prepare_study
from training.study.search import BEST, Trials, chosen, distributions, write_results
from training.study.spec import document
from training.study.trials import AGAIN, OWNER, Record

SPACE = """
base: {model: mlp, hidden: [8], image_size: 16, batch_size: 16, epochs: 80, augment: none}
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
    space = document.read(write(tmp_path, text))
    assert document.read(write(tmp_path, document.to_yaml(space))) == space
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
        document.read(write(tmp_path, text))


def test_a_grid_has_no_ranges(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="lr: a range is for `study search`"):
        study(StudyConfig(study=str(write(tmp_path, SPACE)), out=tmp_path))


LR: dict[str, optuna.distributions.BaseDistribution] = {"lr": optuna.distributions.FloatDistribution(0.1, 1.0)}


def drawn(record: Record, most: int = 9) -> Trial:
    trial = record.draw(LR, most)
    assert trial is not None
    return trial


@pytest.mark.slow
def test_a_trial_of_a_process_that_is_gone_is_made_again(tmp_path: Path) -> None:
    script = (
        "import sys; from pathlib import Path; import optuna; from training.study.trials import Record;"
        "record = Record(Path(sys.argv[1])); lr = optuna.distributions.FloatDistribution(0.1, 1.0);"
        "print(record.draw({'lr': lr}, 9).params['lr'])"
    )
    gone = subprocess.run([sys.executable, "-c", script, tmp_path], capture_output=True, text=True, check=True)
    again = drawn(Record(tmp_path), most=1)
    assert again.params == {"lr": float(gone.stdout)}
    assert again.number == 1
    assert (tmp_path / JOURNAL).stat().st_size > 0


def test_two_processes_share_a_search_and_fail_no_trial_of_one_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One on another host, whose clock is not asked, is given up when its signs of life stop."""
    monkeypatch.setattr(trials, "BEAT_S", 0.0)
    here, there = Record(tmp_path), Record(tmp_path)
    there._me = "1 another-pod"
    first = drawn(there, most=2)
    second = drawn(here, most=2)
    assert second.params != first.params, "two processes that begin together do not draw the same"
    assert here.draw(LR, 2) is None
    assert here.others_run
    now = time.monotonic()
    for minute in range(4):
        monkeypatch.setattr(time, "monotonic", lambda minute=minute: now + minute * 50)
        assert there.beat(first)
        assert here.draw(LR, 2) is None, "it is alive"
    monkeypatch.setattr(time, "monotonic", lambda: now + 211)
    again = drawn(here, most=2)
    assert again.params == first.params
    assert not there.beat(first), "its process is paused, and is to stop the run"
    assert there.finish(first, 0.9, TrialState.COMPLETE).state == TrialState.FAIL
    assert here.finish(second, 0.5, TrialState.COMPLETE).state == TrialState.COMPLETE
    assert here.finish(again, 0.6, TrialState.COMPLETE).state == TrialState.COMPLETE
    assert here.draw(LR, 2) is None
    assert there.draw(LR, 3) is not None, "the lost one does not count"


def test_what_is_interrupted_is_queued_at_once(tmp_path: Path) -> None:
    here, there = Record(tmp_path), Record(tmp_path)
    here._me = "1 another-pod"
    first = drawn(here, most=1)
    here.give_back()
    assert drawn(there, most=1).params == first.params


def test_searches_of_one_name_share_a_database_and_no_trials(tmp_path: Path) -> None:
    folders, url = [tmp_path / place / "search" for place in "ab"], f"sqlite:///{tmp_path / 'trials.db'}"
    for folder in folders:
        folder.mkdir(parents=True)
    first, other, again = (Record(folder, url) for folder in (*folders, folders[0]))
    first.finish(drawn(first, most=1), 0.5, TrialState.COMPLETE)
    assert first.draw(LR, 1) is again.draw(LR, 1) is None
    Record(folders[0])
    assert Record(folders[0], url).draw(LR, 1) is None, "the same, though a journal has been there meanwhile"
    assert other.draw(LR, 1) is not None


def test_a_database_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--storage: .*expected a URL of SQLAlchemy"):
        Record(tmp_path, "nonsense")


def begin(run: Path, *scores: float, planned: int) -> None:
    run.mkdir(exist_ok=True)
    (run / "config.yaml").write_text(f"epochs: {planned}\n")
    history.write(run, History(classes=3, parameters=1, steps_an_epoch=1, at_start=[], epochs=epochs(*scores)))


def test_a_trial_is_judged_by_the_model_that_it_exports_and_the_best_one_keeps_its_own_rule(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The first one ends training ahead; calibrated, the second is better."""
    space = document.read(write(tmp_path, "base: {model: cnn}\naxes:\n  lr: {low: 0.001, high: 0.1}\n"))
    folder = tmp_path / "space"
    prepare_study(space, folder)
    searched = Trials(space, folder, StudyConfig(study="search", trials=2, out=tmp_path))
    for job, trained, exported in zip([*searched.draw()], (0.8, 0.6), (0.7, 0.9), strict=True):
        run = folder / "runs" / job.name
        begin(run, trained, planned=1)
        (run / "report").mkdir()
        scores = dict.fromkeys(TITLES, exported)
        facts = {"scores": dict.fromkeys(("train", "val", "test"), scores)}
        (run / "report" / "report.json").write_text(json.dumps(facts))
        searched.finish(job, 0)
    write_results(folder, space, searched.record.study)
    assert "best   0.9000, trial 1:" in capsys.readouterr().out
    kept = yaml.safe_load((folder / BEST).read_text())
    assert set(kept) == {"model", "lr"}, "with best_by, it would choose another epoch than a run without"


def test_a_trial_is_not_stopped_in_the_first_third_of_its_epochs(tmp_path: Path) -> None:
    space = document.read(write(tmp_path, "axes:\n  lr: {low: 0.001, high: 0.1}\n"))
    folder = tmp_path / "space"
    prepare_study(space, folder)
    searched = Trials(space, folder, StudyConfig(study="search", trials=6, out=tmp_path))
    *others, last = searched.draw()
    for job in others:
        begin(folder / "runs" / job.name, *[0.5] * 4, planned=9)
        assert not searched.is_behind(job)
        searched.record.finish(searched._running[job.name], 0.5, TrialState.COMPLETE)
    behind = []
    for epoch in range(1, 5):
        begin(folder / "runs" / last.name, *[0.1] * epoch, planned=9)
        behind.append(searched.is_behind(last))
    assert behind == [False, False, False, True]


@pytest.mark.parametrize(("best_by", "best"), [("log_loss", 0.1), ("balanced_accuracy", 0.9)])
def test_a_trial_is_judged_by_the_direction_of_its_score(best_by: str, best: float, tmp_path: Path) -> None:
    """Five trials end with 0.5; of two more, with 0.1 and 0.9, the worse one is behind."""
    space = document.read(write(tmp_path, f"base: {{best_by: {best_by}}}\naxes:\n  lr: {{low: 0.001, high: 0.1}}\n"))
    folder = tmp_path / "space"
    prepare_study(space, folder)
    searched = Trials(space, folder, StudyConfig(study="search", trials=7, out=tmp_path))
    behind = {}
    for job, score in zip(searched.draw(), [*[0.5] * 5, 0.1, 0.9], strict=True):
        run = folder / "runs" / job.name
        begin(run, score, planned=2)
        behind[score] = searched.is_behind(job)
        searched.record.finish(searched._running[job.name], score, TrialState.COMPLETE)
    assert behind == {0.5: False, 0.1: best != 0.1, 0.9: best != 0.9}
    assert searched.record.study.best_value == best


def test_a_search_that_was_begun_the_other_way_is_refused(tmp_path: Path) -> None:
    Record(tmp_path)
    with pytest.raises(ConfigError, match="as if a high log_loss were good; --name begins another search"):
        Record(tmp_path, best_by="log_loss")


@pytest.mark.long
@pytest.mark.timeout(600)
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
    made = Record(folder).study.trials
    assert len(made) == 12
    pruned = [trial for trial in made if trial.state == TrialState.PRUNED]
    assert pruned
    assert {trial.params["init"] for trial in pruned} == {"constant"}
    histories = [history.read(folder / "runs" / f"trial={trial.number},seed=0") for trial in pruned]
    assert min(len(record.epochs) for record in histories if record) < 80, "stopped, and not only judged at its end"
    assert main(["--config", str(folder / BEST), "--out", str(tmp_path), "--name", "best", "--epochs", "1"]) == 0


SHARED = """
base: {model: mlp, hidden: [8], image_size: 16, batch_size: 16, epochs: 20, augment: none, init: he_normal}
axes:
  lr: {low: 0.001, high: 0.01, log: true}
"""


@pytest.mark.long
@pytest.mark.timeout(500)
@pytest.mark.parametrize("storage", ["journal", "postgresql"])
def test_of_two_processes_one_is_killed_and_the_other_makes_its_trial(
    storage: str, photos: Path, tmp_path: Path
) -> None:
    with ExitStack() as stack:
        url = None
        if storage == "postgresql":
            pytest.importorskip("psycopg")
            url = stack.enter_context(postgres())
        command = [sys.executable, "-m", "training", "study", "search", str(write(tmp_path, SHARED))]
        command += ["--data", str(photos), "--out", str(tmp_path / "studies"), "--trials", "6", "--jobs", "1"]
        command += ["--storage", url] if url else []
        one, other = (stack.enter_context(subprocess.Popen(command)) for _ in range(2))
        folder = tmp_path / "studies" / "space"

        wait_until((folder / JOURNAL).exists, 120)
        record = Record(folder, url)

        def running_of_one() -> bool:
            runs = record.study.get_trials(states=[TrialState.RUNNING])
            return any(trial.user_attrs.get(OWNER, "").startswith(f"{one.pid} ") for trial in runs)

        wait_until(running_of_one, 120)
        one.kill()
        assert other.wait(timeout=250) == 0
        made = record.study.trials
        if url:  # else the connections are left to the collector of garbage, which complains of it
            record.study._storage._backend.engine.dispose()  # type: ignore[attr-defined]
    [lost] = [trial for trial in made if trial.state == TrialState.FAIL]
    assert lost.user_attrs[OWNER].startswith(f"{one.pid} ")
    [again] = [trial for trial in made if AGAIN in trial.user_attrs]
    assert (again.user_attrs[AGAIN], again.params) == (lost.number, lost.params)
    ended = [trial for trial in made if trial.state in (TrialState.COMPLETE, TrialState.PRUNED)]
    assert len(ended) == 6
    assert len({trial.params["lr"] for trial in ended}) == 6
    assert (folder / BEST).is_file()
