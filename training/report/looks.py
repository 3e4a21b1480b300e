"""How often each test split was looked at: a line a look in `.looks.jsonl`, and what it does to an interval's meaning.

A look is a run's evaluation on its test split, or `evaluate` on test images. The log is that of the folder of runs; the
runs of a study are logged in the folder above the studies.
"""

import json
from collections import Counter
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from pydantic import TypeAdapter, ValidationError

from serving.contract.decode import Digest
from training.engine import runs
from training.storage import append_line, locked

LOG = ".looks.jsonl"
LOCK = ".looks.lock"
MISS = 0.05
"""Probability that a 95 % interval does not hold the true score."""

LookKind = Literal["run", "study", "search", "evaluate", "compare"]
NAMES: dict[LookKind, str] = {
    "run": "run",
    "study": "run of a study",
    "search": "trial of a search",
    "evaluate": "evaluation",
    "compare": "comparison",
}
PLURALS: dict[LookKind, str] = {
    "run": "runs",
    "study": "runs of studies",
    "search": "trials of searches",
    "evaluate": "evaluations",
    "compare": "comparisons",
}


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


@dataclass(frozen=True, kw_only=True)
class Look:
    """One line of the log."""

    what: LookKind
    models: tuple[str, ...]
    """Names of the runs whose models answered."""
    test_split: Digest
    """Digest of key, label and pixels of the test images."""
    images: int
    study: str | None = None
    checkpoint: Digest | None = None
    """SHA-256 of the file of the weights that a run scored: a run that is resumed meanwhile looks once."""
    time: str = field(default_factory=_now)
    """UTC, as in ISO 8601."""


_LOOK = TypeAdapter(Look)


@dataclass(frozen=True, kw_only=True)
class EarlierLooks:
    """The looks at a test split before the one at hand."""

    before: int | None
    """None: not known."""
    by: dict[LookKind, int]
    unknown: str = ""
    """Why it is not known, or not all of it; a part of a sentence."""

    @property
    def sentence(self) -> str:
        """The number, and what it means for the intervals."""
        if self.before is None:
            return f"How often this test split was looked at before is not known: {self.unknown}."
        gap = f" But {self.unknown}." if self.unknown else ""
        if not self.before:
            return f"No earlier look at this test split is recorded.{gap}"
        times = "once" if self.before == 1 else f"{self.before:,} times"
        parts = ", ".join(f"{count:,} {(NAMES if count == 1 else PLURALS)[kind]}" for kind, count in self.by.items())
        return (
            f"This test split was looked at {times} before ({parts}).{gap} Where such a look has guided a choice, the "
            "score of what was chosen is too high, by an amount that no interval shows. Without any choice, too, at "
            f"least one of {self.before + 1:,} intervals of 95 % misses the true score with a probability of up to "
            f"{min(1, MISS * (self.before + 1)):.0%}."
        )

    def facts(self) -> dict[str, object]:
        """What a report's JSON holds."""
        return {"before": self.before, "by": self.by, "sentence": self.sentence}


def look_of_run(run: Path, test_split: Digest, images: int, checkpoint: Digest) -> EarlierLooks:
    """Log that a run has scored its test split, once also if it is resumed; return the looks before that."""
    study = _study(run.absolute().parent)
    kind: LookKind = "run" if study is None else "search" if (study / runs.JOURNAL).is_file() else "study"
    look = Look(
        what=kind,
        models=(run.name,),
        test_split=test_split,
        images=images,
        study=study.name if study else None,
        checkpoint=checkpoint,
    )
    return record_look(runs_folder(run.absolute().parent), look)


def runs_folder(out: Path) -> Path:
    """The folder whose log counts for the runs in `out`, an absolute path."""
    study = _study(out)
    return study.parent.parent if study else out


def _study(out: Path) -> Path | None:
    """The folder of the study whose runs are in `out`."""
    return out.parent if (out.parent / runs.STUDY).is_file() else None


def record_look(out: Path, look: Look) -> EarlierLooks:
    """Add a look to the log of the folder `out`, and return those at the same test split before it.

    A folder that cannot be written is no error: then the number is not known.
    """
    try:
        out.stat()  # the lock would make a folder that is not there
        with locked(out / LOCK):
            earlier, unreadable = _read(out / LOG)
            same = [each for each in earlier if each.test_split == look.test_split]
            repeats = [
                place for place, each in enumerate(same) if look.checkpoint and each.checkpoint == look.checkpoint
            ]
            if repeats:
                same = same[: repeats[0]]
            else:
                append_line(out / LOG, json.dumps(asdict(look), ensure_ascii=False))
    except OSError as error:
        return EarlierLooks(before=None, by={}, unknown=f"{out / LOG} cannot be kept ({error.strerror or error})")
    unknown = f"{unreadable:,} of the lines of {out / LOG} cannot be read" if unreadable else ""
    return EarlierLooks(before=len(same), by=dict(Counter(each.what for each in same)), unknown=unknown)


def _read(path: Path) -> tuple[list[Look], int]:
    """The looks, the oldest first, and the number of lines that are none. Raises OSError."""
    looks, unreadable = [], 0
    for line in path.read_bytes().splitlines() if path.exists() else []:
        try:
            looks.append(_LOOK.validate_json(line))
        except ValidationError:
            unreadable += 1
    return looks, unreadable
