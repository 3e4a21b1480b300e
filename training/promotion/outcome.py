"""The promotion of a run at its end: judged before its export, settled after its report."""

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from shlex import quote

import numpy as np
from pydantic import TypeAdapter, ValidationError

from serving.contract.files.names import MODEL
from training.data.dataset import digest_of_test
from training.engine.runs import PENDING_PROMOTION, REPORT, is_finished
from training.engine.train_state import RunContext
from training.metrics.classification import Probabilities
from training.metrics.evaluation import Evaluation
from training.metrics.intervals.bootstrap import Intervals
from training.options.choices import Promote
from training.options.config import TrainConfig
from training.promotion import log
from training.promotion.champion import find_champion, find_champion_file, folder_faults
from training.promotion.log import LogEntry
from training.promotion.rule import Champion, Judgement, TestAnswers, judge, refusal
from training.report.promotion import Promotion, write_promotion
from training.storage import digest, locked, write_atomically


@dataclass(frozen=True, kw_only=True)
class Pending:
    """What is left to settle of a run: the content of its file PENDING_PROMOTION."""

    promote: Promote
    judgement: Judgement | None
    """None: nothing was judged, as `promote` says."""


_PENDING = TypeAdapter(Pending)
BY_OLDER_VERSION = "it was reported by an older version, which judged nothing"


@dataclass(frozen=True, kw_only=True)
class RunJudge:
    """The rule that a run has declared, with what `latest` serves: for the answers of each file that it makes."""

    answers: TestAnswers
    """Answers of the best epoch."""
    config: TrainConfig
    champion: Champion | None

    def __call__(self, probabilities: Probabilities, intervals: Intervals) -> Judgement:
        """Judge these answers to the test split; `intervals` are theirs."""
        return judge(replace(self.answers, probabilities=probabilities), intervals, self.config, self.champion)


def run_judge(context: RunContext, evaluation: Evaluation) -> RunJudge | None:
    """What judges a run against what `latest` serves; None unless --promote is better. Raises OSError."""
    config, images = context.config, context.dataset
    if config.promote != "better":
        return None
    test, of_folds = images.splits["test"], evaluation.by_final_model is not None
    answers = TestAnswers(
        digest=digest_of_test(images),
        classes=images.classes,
        keys=[images.keys[index] for index in test],
        labels=images.labels[test],
        components=images.components[test],
        leaks=~(np.isin(test, images.division.leak_free_test) | of_folds),  # the folds have held out every image
        probabilities=evaluation.probabilities["test"],
        of_folds=of_folds,
    )
    return RunJudge(answers=answers, config=config, champion=find_champion(config.out, answers, images))


def leave_pending(run: Path, promote: Promote, judgement: Judgement | None) -> None:
    """Note what is to be settled once the report is written; a run that is killed meanwhile settles it when resumed.

    Raises OSError.
    """
    if promote != "never":
        content = _PENDING.dump_json(Pending(promote=promote, judgement=judgement))
        write_atomically(run / PENDING_PROMOTION, lambda file: file.write(content))
    else:
        (run / PENDING_PROMOTION).unlink(missing_ok=True)  # of the same run, before it was killed


def finish(run: Path, promote: Promote) -> bool:
    """Settle the promotion of a run that has its report, and return whether the run is finished. Raises OSError."""
    if (run / REPORT).is_dir():
        settle(run, promote)
    return is_finished(run)


def settle(run: Path, promote: Promote) -> None:
    """Move `latest` to a run with a report if its judgement allows it, and log either; once only.

    `promote` may be another than the run began with. A judgement holds against the model that `latest` served then; if
    that is another by now, the run is refused. Raises OSError whose message says that the run is complete.
    """
    if not (run / PENDING_PROMOTION).exists():
        return
    pending = _read(run / PENDING_PROMOTION)
    try:
        with locked(run.parent / log.LOCK):
            promotion = _settle(run, pending, promote)
        write_promotion(run, promotion)
        (run / PENDING_PROMOTION).unlink()
    except OSError as error:
        lost = f"{error.strerror or error}; {run} is complete; --resume {quote(str(run))} tries again"
        raise OSError(error.errno, lost, error.filename) from error


def not_settled(run: Path, promote: Promote, judgement: Judgement | None) -> Promotion:
    """What a report says of its run's promotion until that is settled."""
    faults = judgement.faults if judgement else ()
    holds = "does not hold" if faults else "holds"
    sentence = f"The rule of promotion {holds}, but it is not settled yet; `--resume {quote(str(run))}` does that."
    return Promotion(
        outcome="not asked" if promote == "never" else "not settled",
        promote=promote,
        sentence="It was not to be promoted (`--promote never`)." if promote == "never" else sentence,
        measured=judgement.measured if judgement else None,
        faults=faults,
        warnings=judgement.warnings if judgement else (),
        time=None,
    )


def _as_asked(pending: Pending | None, promote: Promote) -> Pending | None:
    """By --promote as it is now. `better` is also the value of a run that is resumed without it."""
    if promote == "better" or (pending and promote == pending.promote):
        return pending
    return Pending(promote=promote, judgement=pending.judgement if pending and promote == "never" else None)


def _settle(run: Path, pending: Pending | None, requested: Promote) -> Promotion:
    out, champion, challenger = run.parent, find_champion_file(run.parent), digest(run / MODEL)
    now = champion.digest if champion else None
    if now == challenger:  # a process was killed after the move
        return _as_settled(run, pending.promote if pending else "better", pending.judgement if pending else None, None)
    pending = _as_asked(pending, requested)
    judgement, promote = (pending.judgement, pending.promote) if pending else (None, "better")
    if promote == "never":
        return not_settled(run, promote, judgement)
    faults: tuple[str, ...] = () if pending else (BY_OLDER_VERSION,)
    if judgement:
        faults = judgement.faults
        if now != judgement.rival:  # a key of files on disk, hence the older word
            target = champion.target if champion else "nothing"
            faults += (f"`latest` has moved to {target} since it was judged; without --force it is judged anew",)
    faults += folder_faults(run)
    entry = LogEntry(
        event="refused" if faults else "promoted",
        run=run.name,
        digest=challenger,
        replaced=champion.target if champion else None,
        replaced_digest=now,
        numbers=asdict(judgement.measured) if judgement else None,
        faults=faults,
        reason=f"--promote {pending.promote}" if pending else "",
    )
    if faults:
        log.append(out, entry)
    else:
        log.move(out, entry)
    return _as_settled(run, promote, judgement, entry)


def _as_settled(run: Path, promote: Promote, judgement: Judgement | None, entry: LogEntry | None) -> Promotion:
    """By the entry of the log; None: `latest` had moved already."""
    faults = entry.faults if entry else ()
    when = f" at {entry.time}" if entry else ""
    moved = f"It was promoted: `latest` moved to it{when}, by the rule `--promote {promote}`."
    return Promotion(
        outcome="refused" if faults else "promoted",
        promote=promote,
        sentence=refusal(run, faults) if faults else moved,
        measured=judgement.measured if judgement else None,
        faults=faults,
        warnings=judgement.warnings if judgement else (),
        time=entry.time if entry else None,
    )


def _read(path: Path) -> Pending | None:
    """None for the empty file of an older version. Raises OSError."""
    try:
        return _PENDING.validate_json(path.read_bytes())
    except ValidationError:
        return None
