"""`python -m training promote` and `rollback`: move `latest` by hand, under the same rule and into the same log."""

from dataclasses import asdict, dataclass
from pathlib import Path
from shlex import quote

import tyro

from serving.contract.card.model_card import ModelCard
from serving.contract.decode import Digest
from serving.contract.files.names import MODEL
from serving.contract.model import open_model
from training.engine import runs
from training.errors import CheckFailed, ConfigError
from training.metrics.intervals.bootstrap import bootstrap
from training.promotion import log
from training.promotion.champion import ChampionFile, find_champion, find_champion_file, folder_faults, scored_on
from training.promotion.log import LogEntry
from training.promotion.rule import Judgement, TestAnswers, judge, refusal
from training.report.predictions import read_predictions
from training.storage import digest, locked


@dataclass(frozen=True, kw_only=True)
class PromoteConfig:
    """Point `latest` to a run, if the rule that the run declared holds by its own and by the served run's answers.

    Both are read from their predictions.csv; no images are read. The exit code is 1 if the rule does not hold.
    """

    run: tyro.conf.Positional[Path]
    """The run's folder."""
    force: bool = False
    """Also where the rule does not hold; needs --reason."""
    reason: str = ""
    """Why, for the log."""


@dataclass(frozen=True, kw_only=True)
class RollbackConfig:
    """Point `latest` back to what it pointed to before, by the log."""

    out: Path = Path("runs")
    """Folder in which runs are kept."""
    reason: str = ""
    """Why, for the log."""


def promote(config: PromoteConfig) -> Path:
    """Move `latest` and return the folder that holds it.

    Raises CheckFailed when the rule does not hold, ConfigError, ModelRefused, OSError.
    """
    run = _complete(config.run)
    if config.force and not config.reason.strip():
        raise ConfigError("--force: expected a --reason beside it, which is logged")
    out, classifier = run.parent, open_model(run / MODEL, threads=0)  # no reason promotes what the service refuses
    _refuse_folder(out)
    with locked(out / log.LOCK):
        champion = find_champion_file(out)
        served = (run.name, classifier.digest)
        if champion and (champion.target, champion.digest) == served and log.targets(log.history(out))[-1:] == [served]:
            return out
        judgement = _judge(run, classifier.card)
        faults = judgement.faults if judgement else (_unjudged(classifier.card),)
        for warning in judgement.warnings if judgement else ():
            print(f"warning: {warning}")
        faults += folder_faults(run)
        refused = bool(faults) and not config.force
        entry = LogEntry(
            event="refused" if refused else "promoted",
            run=run.name,
            digest=classifier.digest,
            replaced=champion.target if champion else None,
            replaced_digest=champion.digest if champion else None,
            numbers=asdict(judgement.measured) if judgement else None,
            faults=faults,
            reason=config.reason,
        )
        if refused:
            log.append(out, entry)
            raise CheckFailed(refusal(run, faults))
        log.move(out, entry)
    return out


def rollback(config: RollbackConfig) -> Path:
    """Move `latest` back and return the folder that holds it. Raises ConfigError, ModelRefused, OSError."""
    out = config.out
    if not out.is_dir():
        raise ConfigError(f"--out {out}: expected the folder of runs")
    _refuse_folder(out)
    with locked(out / log.LOCK):
        champion = find_champion_file(out)
        targets = log.targets(log.history(out))
        if champion is None or not targets or targets[-1][0] != champion.target:
            where = f"points to {champion.target}" if champion else "does not exist"
            raise ConfigError(f"{out / runs.LATEST} {where}, and {out / log.LOG} has not moved it there: {_BY_NAME}")
        if len(targets) < 2:
            raise ConfigError(f"{out / log.LOG}: nothing to roll back to: {champion.target} was the first; {_BY_NAME}")
        target, expected = targets[-2]
        if faults := folder_faults(out / target):
            raise ConfigError(f"{out / target}: {'; '.join(faults)}; {_BY_NAME}, with --force")
        _check_is_as_logged(out / target / MODEL, expected)
        log.move(out, _back_to(target, digest(out / target / MODEL), champion, config.reason))
    return out


def latest_summary(out: Path) -> str:
    """What both commands print at the end."""
    return f"{out / runs.LATEST} points to {(out / runs.LATEST).readlink()}; logged in {out / log.LOG}"


_BY_NAME = "`python -m training promote RUN` goes to a run by its name"


def _complete(run: Path) -> Path:
    """The folder of a run that has its results. Raises ConfigError."""
    run = run if run.name not in ("", "..") else run.resolve()
    if run.is_symlink() or not (run / runs.CONFIG).is_file():
        raise ConfigError(f"{run}: expected a run's own folder, with its {runs.CONFIG}")
    if not (run / MODEL).is_file() or not (run / runs.REPORT).is_dir():
        resume = f"--resume {quote(str(run))}"
        raise ConfigError(f"{run}: it has no model with a report; {resume} completes an unfinished run")
    return run


def _refuse_folder(out: Path) -> None:
    latest = out / runs.LATEST
    if latest.exists() and not latest.is_symlink():
        raise ConfigError(f"{latest} is no link, so it cannot be moved; rename it")


def _judge(run: Path, card: ModelCard) -> Judgement | None:
    """Judge a finished run by its record; None without one of its own test. Raises ConfigError, OSError."""
    split = None if card.statement else scored_on(run, card)
    recorded = read_predictions(run / runs.PREDICTIONS, card.classes)
    if split is None or recorded is None or recorded.components is None:
        return None
    answers = TestAnswers(
        digest=split,
        classes=card.classes,
        keys=recorded.keys,
        labels=recorded.labels,
        components=recorded.components,
        leaks=recorded.leaks,
        probabilities=recorded.probabilities,
    )
    intervals = bootstrap(answers.labels, answers.probabilities, answers.components, answers.classes)
    return judge(answers, intervals, runs.load_config(run), find_champion(run.parent, answers, None))


def _unjudged(card: ModelCard) -> str:
    if card.statement:
        return "its own answers are to images that it has learned, as its scores are from folds"
    return "its answers were not recorded, as by an older version"


def _check_is_as_logged(file: Path, expected: str | None) -> None:
    """Raise ConfigError or ModelRefused where the file of a target is not the one that was served."""
    if not file.is_file():
        raise ConfigError(f"{file}: no such file, so `latest` cannot go back to it; {_BY_NAME}")
    if digest(file) != expected:
        raise ConfigError(f"{file}: it is not the file that was served, by its digest; {_BY_NAME}")
    open_model(file, threads=0)


def _back_to(target: str, target_digest: Digest, champion: ChampionFile, reason: str) -> LogEntry:
    return LogEntry(
        event="rolled back",
        run=target,
        digest=target_digest,
        replaced=champion.target,
        replaced_digest=champion.digest,
        numbers=None,
        faults=(),
        reason=reason,
    )
