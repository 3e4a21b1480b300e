"""Hyperparameter search: trials are ordinary runs whose options Optuna draws; trials that are behind stop early."""

import signal
import time
from collections.abc import Iterator
from pathlib import Path
from shlex import quote

import optuna
import yaml
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import Trial, TrialState

from training.engine.runs import CONFIG
from training.errors import ConfigError
from training.process_pool import ProcessPool, TrainingJob
from training.storage import locked, write_atomically
from training.study.config import StudyConfig, concurrent_runs, declared
from training.study.folder import REPORTING, job, prepare_study
from training.study.measures import best
from training.study.report import write_study_report
from training.study.results import collect_results, outcome, read_history, read_scores
from training.study.spec.grid import Cell, Options, Question, Study, plain
from training.study.trials import SEED, Record

BEST = "best.yaml"
SPACE = "search"
TRIAL = "trial"
TERMINATED = 128 + signal.SIGTERM
UNJUDGED = 1 / 3
"""Share of a trial's epochs in which it is not stopped: low rates and strong augmentation learn later, not worse."""
WAIT_S = 2.0
"""Seconds between two polls for trials that other processes have lost."""


def search(config: StudyConfig) -> Path:
    """Make trials until there are --trials, write the best one's options to `best.yaml`, and return the folder.

    The options are drawn by a tree-structured Parzen estimator (Bergstra et al. 2011) and judged by
    the validation score of the exported model. After a third of its epochs a trial stops when its best score so far,
    without a fitted bias, is worse than the median of the others' at that epoch (Golovin et al. 2017). The same command
    continues a search; trials that were running when it stopped start again. Several processes or pods with the same
    folder make its trials together, and each returns when all have ended.

    Raises ConfigError, OSError, Interrupted.
    """
    if len(config.paths) > 1:
        raise ConfigError(f"study search: expected one file, got {len(config.paths)}")
    name = str(config.paths[0]) if config.paths else SPACE
    space = declared(config, name)
    folder = config.out / (config.name or Path(name).stem)
    prepare_study(space, folder)
    trials = Trials(space, folder, config)
    pool = ProcessPool(
        size=concurrent_runs(config), threads=config.threads, ended=trials.finish, hopeless=trials.is_behind
    )
    try:
        pool.run(trials.draw())
        while trials.record.others_run:
            time.sleep(WAIT_S)
            pool.run(trials.draw())  # what a process that was killed meanwhile has left
    finally:
        trials.record.give_back()
    with locked(folder / REPORTING):
        write_results(folder, space, trials.record.study)
    return folder


class Trials:
    """The trials of a search, between their record, which draws and judges, and the runs, which are made by jobs."""

    def __init__(self, space: Study, folder: Path, config: StudyConfig) -> None:
        self._score = space.some_cells(1)[0].score
        self.record = Record(folder, config.storage, self._score)
        self._space = space
        self._folder = folder
        self._config = config
        self._running: dict[str, Trial] = {}
        self._epochs_reported: dict[str, int] = {}

    def draw(self) -> Iterator[TrainingJob]:
        """The job of each trial that is missing; its options are drawn when it is asked for."""
        while (trial := self.record.draw(distributions(self._space), self._config.trials)) is not None:
            cell = as_cell(self._space, trial.number, trial.params)
            self._running[cell.name] = trial
            yield job(cell, self._folder, self._config)

    def finish(self, job: TrainingJob, code: int) -> None:
        """Record the score of a job that ended with this exit code, and print it.

        A trial that diverged is recorded as one that was stopped: it says as much about its options.
        """
        trial, run = self._running.pop(job.name), self._folder / "runs" / job.name
        state = outcome(run)
        score = read_scores(run)["val"][self._score] if state == "done" else None
        if score is not None:
            recorded = self.record.finish(trial, score, TrialState.COMPLETE)
        else:
            failed = state == "failed" and code != TERMINATED
            recorded = self.record.finish(trial, None, TrialState.FAIL if failed else TrialState.PRUNED)
        print(f"{recorded.state.name.lower():8} {job.name}  {trial.params}", flush=True)

    def is_behind(self, job: TrainingJob) -> bool:
        """Report the epochs that a job has finished since the last call; whether the trial is to be stopped."""
        trial = self._running[job.name]
        if not self.record.beat(trial):
            return True  # another process has taken it for lost, and makes it again
        run = self._folder / "runs" / job.name
        record = read_history(run, self._score)
        reported = self._epochs_reported.get(job.name, 0)
        epochs = len(record.epochs) if record else 0
        if record is None or epochs == reported:
            return False
        self._epochs_reported[job.name] = epochs
        try:
            # Each epoch, also where several end between two calls: the median compares trials at the same epoch.
            for epoch in range(reported + 1, epochs + 1):
                if (score := best(record.epochs[:epoch])) is not None:
                    trial.report(score, epoch)
        except UpdateFinishedTrialError:
            return True
        planned: int = yaml.safe_load((run / CONFIG).read_text(encoding="utf-8"))["epochs"]
        return epochs > planned * UNJUDGED and trial.should_prune()


def distributions(space: Study) -> dict[str, BaseDistribution]:
    """What Optuna draws from: the levels of each axis, by name, and the ranges."""
    drawn: dict[str, BaseDistribution] = {
        axis: CategoricalDistribution(list(levels)) for axis, levels in space.axes.items()
    }
    for name, limits in space.ranges.items():
        whole = isinstance(limits.low, int) and isinstance(limits.high, int)
        drawn[name] = (IntDistribution if whole else FloatDistribution)(limits.low, limits.high, log=limits.log)  # type: ignore[arg-type]
    return drawn


def as_cell(space: Study, number: int, drawn: Options) -> Cell:
    """The run of a trial."""
    return Cell(levels={TRIAL: str(number)}, seed=SEED, options=space.base | chosen(space, drawn))


def chosen(space: Study, drawn: Options) -> Options:
    """The options that the drawn levels and values stand for."""
    options: Options = {}
    for name, value in drawn.items():
        options |= space.axes[name][value] if name in space.axes else {name: value}
    return options


def write_results(folder: Path, space: Study, optuna_study: optuna.Study) -> None:
    """Write the best trial's options, and the report of a study whose only axis is the trial."""
    if not optuna_study.get_trials(states=[TrialState.COMPLETE]):
        raise ConfigError(f"{folder}: no trial finished; see {folder / 'logs'}")
    best_options = plain(as_cell(space, optuna_study.best_trial.number, optuna_study.best_params).options)
    write_atomically(folder / BEST, lambda file: file.write(yaml.safe_dump(best_options, sort_keys=False).encode()))
    trials = {str(trial.number): chosen(space, trial.params) for trial in optuna_study.trials if trial.params}
    question = Question(ask="Which trial scores best?", measure="val_score", axis=TRIAL, where={})
    study = Study(title=space.title, base=space.base, axes={TRIAL: trials}, seeds=1, questions=(question,))
    write_study_report(folder, study, collect_results(study, [folder]))
    print(f"best   {optuna_study.best_value:.4f}, trial {optuna_study.best_trial.number}: {optuna_study.best_params}")
    print(f"again  python -m training --config {quote(str(folder / BEST))}")
