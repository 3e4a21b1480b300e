"""Search for options that score well: trials are ordinary runs, drawn by Optuna; what cannot win is stopped early."""

import signal
from collections.abc import Iterator
from pathlib import Path

import optuna
import yaml
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import Trial, TrialState

from training.engine import history
from training.errors import ConfigError
from training.storage import write_atomically
from training.study import measures, process_pool, results
from training.study import report as study_report
from training.study import spec as grid
from training.study.command import StudyConfig, at_a_time, declared, keep, prepare
from training.study.process_pool import Job
from training.study.spec import Cell, Options, Question, Study

JOURNAL = "journal.log"
BEST = "best.yaml"
SPACE = "search"
TRIAL = "trial"
SEED = 0
STOPPED = 128 + signal.SIGTERM
MIN_TRIALS = 5
"""Trials that are seen to their end before any is judged by them."""


def search(config: StudyConfig) -> Path:
    """Make trials until there are --trials, and leave the best one's options as `best.yaml`, for --config.

    A trial is stopped when its best validation score so far is below the median of the others' at that epoch (Golovin
    et al. 2017). Drawn by a tree-structured Parzen estimator (Bergstra et al. 2011). What was stopped goes on with the
    same command; trials that were under way begin anew. Raises ConfigError, OSError, Interrupted.
    """
    if len(config.paths) > 1:
        raise ConfigError(f"study search: expected one file, got {len(config.paths)}")
    name = str(config.paths[0]) if config.paths else SPACE
    space = declared(config, name)
    folder = config.out / (config.name or Path(name).stem)
    keep(space, folder)
    searched = open_journal(folder)
    trials: dict[str, Trial] = {}
    reported: dict[str, int] = {}
    left = config.trials - sum(trial.state.is_finished() for trial in searched.trials)

    def drawn() -> Iterator[Job]:
        for _ in range(left):
            trial = searched.ask(distributions(space))
            cell = as_cell(space, trial.number, trial.params)
            trials[cell.name] = trial
            yield prepare(cell, folder, config)

    def ended(job: Job, code: int) -> None:
        trial, run = trials.pop(job.name), folder / "runs" / job.name
        seen = history.read(run)
        score, state = measures.best(seen.epochs) if seen else None, results.outcome(run)
        if state == "done" and score is not None:
            searched.tell(trial, score)
        else:  # one that diverged says as much of its options as one that fell behind
            searched.tell(trial, state=TrialState.FAIL if state == "failed" and code != STOPPED else TrialState.PRUNED)
        print(f"{searched.trials[trial.number].state.name.lower():8} {job.name}  {trial.params}", flush=True)

    def hopeless(job: Job) -> bool:
        seen = history.read(folder / "runs" / job.name)
        known = reported.get(job.name, 0)
        epochs = len(seen.epochs) if seen else 0
        if seen is None or epochs == known:
            return False
        reported[job.name] = epochs
        # Every epoch, also of those that end between two looks: trials are compared at the very same one.
        for epoch in range(known + 1, epochs + 1):
            if (best := measures.best(seen.epochs[:epoch])) is not None:
                trials[job.name].report(best, epoch)
        return trials[job.name].should_prune()

    process_pool.run(drawn(), at_a_time=at_a_time(config), threads=config.threads, ended=ended, hopeless=hopeless)
    conclude(folder, space, searched)
    return folder


def open_journal(folder: Path) -> optuna.Study:
    """The search that is kept in the folder, or a new one; trials that were under way when it was killed come again."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    searched = optuna.create_study(
        study_name=folder.name,
        storage=JournalStorage(JournalFileBackend(str(folder / JOURNAL))),
        load_if_exists=True,
        direction="maximize",
        sampler=optuna.samplers.TPESampler(seed=SEED),
        pruner=optuna.pruners.MedianPruner(n_startup_trials=MIN_TRIALS),
    )
    for trial in searched.get_trials(states=[TrialState.RUNNING]):
        searched.tell(trial.number, state=TrialState.FAIL)
        searched.enqueue_trial(trial.params)
    return searched


def distributions(space: Study) -> dict[str, BaseDistribution]:
    """What Optuna draws from: levels of the axes by name, and the ranges."""
    drawn: dict[str, BaseDistribution] = {
        axis: CategoricalDistribution(list(levels)) for axis, levels in space.axes.items()
    }
    for name, of in space.ranges.items():
        whole = isinstance(of.low, int) and isinstance(of.high, int)
        drawn[name] = (IntDistribution if whole else FloatDistribution)(of.low, of.high, log=of.log)  # type: ignore[arg-type]
    return drawn


def as_cell(space: Study, number: int, drawn: Options) -> Cell:
    """The run of a trial."""
    return Cell(levels={TRIAL: str(number)}, seed=SEED, options=space.base | chosen(space, drawn))


def chosen(space: Study, drawn: Options) -> Options:
    """Options, of what Optuna drew."""
    options: Options = {}
    for name, value in drawn.items():
        options |= space.axes[name][value] if name in space.axes else {name: value}
    return options


def conclude(folder: Path, space: Study, searched: optuna.Study) -> None:
    """Leave the best trial's options and the pages of a study whose one axis are the trials."""
    if not searched.get_trials(states=[TrialState.COMPLETE]):
        raise ConfigError(f"{folder}: no trial came to its end; {folder / 'logs'} says why")
    best = grid.plain(space.base | chosen(space, searched.best_params))
    write_atomically(folder / BEST, lambda file: file.write(yaml.safe_dump(best, sort_keys=False).encode()))
    trials = {str(trial.number): chosen(space, trial.params) for trial in searched.trials if trial.params}
    question = Question(ask="Which trial scores best?", measure="val_score", axis=TRIAL, where={})
    made = Study(title=space.title, base=space.base, axes={TRIAL: trials}, seeds=1, questions=(question,))
    study_report.write(folder, made, results.collect(made, [folder]))
    print(f"best   {searched.best_value:.4f}, trial {searched.best_trial.number}: {searched.best_params}")
    print(f"again  python -m training --config {folder / BEST}")
