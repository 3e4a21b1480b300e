"""`promotions.jsonl`: when `latest` moved or did not, why, by whom; and the moves themselves, one at a time."""

import json
import os
import pwd
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, Literal

from pydantic import TypeAdapter, ValidationError

from serving.contract.decode import Digest
from training.engine.runs import point_latest
from training.errors import ConfigError
from training.storage import append_line

Target = tuple[str, Digest | None]
"""What `latest` points to, and the SHA-256 of the model file there; None if there is none."""
LOG = "promotions.jsonl"
LOCK = ".promotions.lock"


def account() -> str:
    """The system's name for the account of this process; its number where it has none, as in containers."""
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return f"uid {os.getuid()}"


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


@dataclass(frozen=True, kw_only=True)
class LogEntry:
    """One line of the log."""

    event: Literal["promoted", "refused", "rolled back"]
    run: str
    """The link's new target, mostly the name of a run beside it; of a refusal the run that it was about."""
    digest: Digest
    """SHA-256 of that model file."""
    replaced: str | None
    """What `latest` pointed to before; None if there was no such link."""
    replaced_digest: Digest | None
    """None if nothing was served."""
    numbers: dict[str, Any] | None
    """What was measured, as in a certificate; None where nothing was."""
    faults: tuple[str, ...]
    """Why the rule did not hold."""
    reason: str
    """A person's, or the option that decided."""
    time: str = field(default_factory=_now)
    """UTC, as in ISO 8601."""
    who: str = field(default_factory=account)


_ENTRY = TypeAdapter(LogEntry)


def check(out: Path) -> None:
    """Raise OSError where no line can be added to the log of `out`; before a training, so that it costs no time."""
    path = out / LOG
    with path.open("ab") if path.exists() else TemporaryFile(dir=out):  # an empty log would say nothing
        pass


def append(out: Path, entry: LogEntry) -> int:
    """Add a line; returns the length of the log before. Call it with LOCK `locked`. Raises OSError."""
    return append_line(out / LOG, json.dumps(asdict(entry), ensure_ascii=False, allow_nan=False))


def move(out: Path, entry: LogEntry) -> None:
    """Log a move and make it; without the one there is not the other. Call it with LOCK `locked`. Raises OSError."""
    length = append(out, entry)
    try:
        point_latest(out, entry.run)
    except OSError:
        os.truncate(out / LOG, length)
        raise


def history(out: Path) -> list[LogEntry]:
    """The entries of the log, the oldest first. Raises ConfigError for a line that is none, OSError."""
    path = out / LOG
    entries = []
    for number, line in enumerate(path.read_bytes().splitlines() if path.exists() else [], 1):
        try:
            entries.append(_ENTRY.validate_json(line))
        except ValidationError as error:
            raise ConfigError(f"{path}, line {number}: not an entry of the log ({error.errors()[0]['msg']})") from error
    return entries


def targets(entries: list[LogEntry]) -> list[Target]:
    """What `latest` pointed to up to now, in order; a roll back takes the last away."""
    stack: list[Target] = []
    for entry in entries:
        if entry.event == "refused":
            continue
        if entry.replaced is not None:
            _put(stack, (entry.replaced, entry.replaced_digest))  # new where something moved it that writes no log
        if entry.event == "rolled back":
            del stack[-1:]
        _put(stack, (entry.run, entry.digest))
    return stack


def _put(stack: list[Target], target: Target) -> None:
    if stack[-1:] != [target]:
        stack.append(target)
