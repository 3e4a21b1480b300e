"""The record of a search's trials, which several processes or pods may share: which makes which, and which is gone."""

import os
import socket
import time
from pathlib import Path
from uuid import uuid4

import optuna
from optuna.distributions import BaseDistribution
from optuna.exceptions import UpdateFinishedTrialError
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, Trial, TrialState
from sqlalchemy.exc import ArgumentError, OperationalError

from serving.contract.extras import install_command
from training.engine.runs import JOURNAL
from training.errors import ConfigError
from training.options.choices import ScoreName
from training.storage import locked

SEED = 0
MIN_TRIALS = 5
"""Trials that run to their end before any is compared with their median."""
BEAT_S, GRACE_S = 10.0, 60.0
"""Seconds between two signs of life of a running trial, and without one until the trial counts as lost."""
OWNER, BEAT, AGAIN = "owner", "beat", "again"
"""Attributes of a trial: the process that makes it, its signs of life, the number of the lost trial that it repeats."""
MARK = ".database"
"""File with what is behind the folder's name in a database."""
ASKING = ".asking"
"""A lock: of several processes one at a time looks for lost trials and draws another."""


class Record:
    """The trials of a search, in a journal in its folder or in a database. The folder is shared in either case.

    A trial that runs belongs to the process that drew it. A trial whose process is gone, or whose signs of life stop
    for GRACE_S, is recorded as failed and queued again; of several processes that see it, one does so.
    """

    def __init__(self, folder: Path, url: str | None = None, best_by: ScoreName = "balanced_accuracy") -> None:
        """Open the record, or begin it, of trials that are judged by this score.

        Raises ConfigError for a database that cannot be used, and for a record whose trials are judged the other way.
        """
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._lock = folder / ASKING
        self._me = f"{os.getpid()} {socket.gethostname()}"
        self._own: dict[int, float] = {}
        """When each own trial gave its last sign of life, by number."""
        self._others: dict[int, tuple[object, float]] = {}
        """The latest sign of life of others', and when it was first seen here: no two machines' clocks are compared."""
        direction = StudyDirection.MINIMIZE if best_by == "log_loss" else StudyDirection.MAXIMIZE
        with locked(self._lock):  # one process makes the tables
            self.study = optuna.create_study(
                study_name=folder.name if url is None else _name_in_database(folder),
                storage=_storage(folder, url),
                load_if_exists=True,
                direction=direction,
                pruner=optuna.pruners.MedianPruner(n_startup_trials=MIN_TRIALS),
            )
        if self.study.direction != direction:  # begun when all scores were taken to be better if higher
            raise ConfigError(
                f"{folder}: its trials were judged as if a high {best_by} were good; --name begins another search"
            )

    def draw(self, distributions: dict[str, BaseDistribution], most: int) -> Trial | None:
        """A trial to make: a lost one again, or a new one while there are fewer than `most`; None if there is none."""
        with locked(self._lock):
            self._give_lost_again()
            trials = self.study.get_trials(deepcopy=False)
            repeated = {trial.user_attrs.get(AGAIN) for trial in trials}
            trials_made = [
                trial
                for trial in trials
                if trial.params and trial.number not in repeated and trial.state != TrialState.WAITING
            ]
            if len(trials_made) >= most:
                return None
            # By its number, so that processes that share a search, or one that is continued, do not draw the same.
            self.study.sampler = optuna.samplers.TPESampler(seed=SEED + len(trials))
            trial = self.study.ask(distributions)
            trial.set_user_attr(OWNER, self._me)
        self._own[trial.number] = time.monotonic()
        return trial

    def beat(self, trial: Trial) -> bool:
        """A sign of life of an own trial, at most each BEAT_S; False if another process has taken it for lost."""
        now = time.monotonic()
        if now - self._own[trial.number] >= BEAT_S:
            try:
                trial.set_user_attr(BEAT, now)
            except UpdateFinishedTrialError:
                return False
            self._own[trial.number] = now
        return True

    def finish(self, trial: Trial, score: float | None, state: TrialState) -> FrozenTrial:
        """Record how an own trial ended, unless another process has taken it for lost; returns what is recorded."""
        self._own.pop(trial.number)
        return self.study.tell(trial, score, state, skip_if_finished=True)

    def give_back(self) -> None:
        """Queue the own trials that have not finished, for another process or the next start."""
        for trial in self._running():
            if trial.number in self._own:
                self._give_again(trial)

    @property
    def others_run(self) -> bool:
        """Whether trials of other processes run, one of which may still have to be made again."""
        return any(trial.number not in self._own for trial in self._running())

    def _running(self) -> list[FrozenTrial]:
        return self.study.get_trials(deepcopy=False, states=[TrialState.RUNNING])

    def _give_lost_again(self) -> None:
        for trial in self._running():
            if trial.number not in self._own and self._is_lost(trial):
                self._give_again(trial)

    def _is_lost(self, trial: FrozenTrial) -> bool:
        process, _, host = str(trial.user_attrs.get(OWNER, "")).partition(" ")
        # A container that starts again may have the same name and the same number of its process.
        if host == socket.gethostname() and (int(process) == os.getpid() or not _is_alive(int(process))):
            return True
        beat, now = trial.user_attrs.get(BEAT), time.monotonic()
        seen, since = self._others.get(trial.number, (None, now))
        self._others[trial.number] = beat, (since if beat == seen else now)
        return beat == seen and now - since > GRACE_S

    def _give_again(self, trial: FrozenTrial) -> None:
        try:
            self.study.tell(trial.number, state=TrialState.FAIL)
        except (ValueError, UpdateFinishedTrialError):
            return  # it has ended after all, or another process was faster
        if trial.params:
            self.study.enqueue_trial(trial.params, user_attrs={AGAIN: trial.number})


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass  # of another user
    return True


def _name_in_database(folder: Path) -> str:
    """The folder's, with what tells it from folders of the same name, which may share the database."""
    journal, mark = folder / JOURNAL, folder / MARK
    if not journal.exists():
        mark.write_text(uuid4().hex[:8], encoding="utf-8")
    journal.touch()  # by which a search is known to be one
    return f"{folder.name}-{mark.read_text(encoding='utf-8')}" if mark.exists() else folder.name  # of an older version


def _storage(folder: Path, url: str | None) -> BaseStorage:
    if url is None:
        return JournalStorage(JournalFileBackend(str(folder / JOURNAL)))
    try:
        # A connection that the server or a proxy has closed meanwhile is opened again.
        return RDBStorage(url, engine_kwargs={"pool_pre_ping": True})
    except (ArgumentError, ImportError, OperationalError) as error:
        raise ConfigError(
            f"--storage: {str(error).strip()}; expected a URL of SQLAlchemy, as postgresql+psycopg://user@host/name, "
            f"whose driver is installed by {install_command('postgresql')}"
        ) from error
