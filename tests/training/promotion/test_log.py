import json
import os
import pwd
from concurrent.futures import ProcessPoolExecutor
from itertools import pairwise
from multiprocessing import get_context
from pathlib import Path

import pytest

from serving.contract.decode import Digest
from tests.support.promotions import latest
from training.errors import ConfigError
from training.promotion import log
from training.promotion.log import LogEntry
from training.storage import locked


def digest(name: str) -> Digest:
    return Digest(name[0] * 64)


def entry(run: str, replaced: str | None, event: str = "promoted") -> LogEntry:
    return LogEntry(
        event=event,  # type: ignore[arg-type]
        run=run,
        digest=digest(run),
        replaced=replaced,
        replaced_digest=digest(replaced) if replaced else None,
        numbers=None,
        faults=(),
        reason="because",
    )


def names(entries: list[LogEntry]) -> list[str]:
    return [name for name, _ in log.targets(entries)]


def test_a_line_says_who_and_when_and_what(tmp_path: Path) -> None:
    log.move(tmp_path, entry("b", "a"))
    [line] = (tmp_path / log.LOG).read_text().splitlines()
    facts = json.loads(line)
    assert facts["who"] == pwd.getpwuid(os.getuid()).pw_name
    assert facts["time"].endswith("+00:00")
    assert (facts["run"], facts["replaced"], facts["reason"]) == ("b", "a", "because")
    assert log.history(tmp_path) == [LogEntry(**facts | {"faults": ()})]
    assert latest(tmp_path) == "b"


def test_the_targets_are_a_stack_of_what_was_served() -> None:
    moves = [entry("b", "a"), entry("x", "b", "refused"), entry("c", "b")]
    assert names(moves) == ["a", "b", "c"], "what `latest` pointed to before the log counts"
    back = [*moves, entry("b", "c", "rolled back")]
    assert names(back) == ["a", "b"]
    assert names([*back, entry("a", "b", "rolled back")]) == ["a"]
    assert names([*back, entry("d", "b")]) == ["a", "b", "d"]
    assert names([*moves, entry("e", "z")]) == ["a", "b", "c", "z", "e"], "z was linked by hand"


def test_a_move_that_fails_leaves_no_line(tmp_path: Path) -> None:
    log.move(tmp_path, entry("a", None))
    before = (tmp_path / log.LOG).read_bytes()
    (tmp_path / "latest").unlink()
    (tmp_path / "latest").mkdir()
    with pytest.raises(OSError, match="could not be moved to b"):
        log.move(tmp_path, entry("b", "a"))
    assert (tmp_path / log.LOG).read_bytes() == before


def test_a_log_that_cannot_be_written_moves_nothing(tmp_path: Path) -> None:
    log.move(tmp_path, entry("a", None))
    (tmp_path / log.LOG).unlink()
    (tmp_path / log.LOG).mkdir()
    with pytest.raises(OSError, match="Is a directory"):
        log.check(tmp_path)
    with pytest.raises(OSError, match="Is a directory"):
        log.move(tmp_path, entry("b", "a"))
    assert latest(tmp_path) == "a"


def test_a_torn_line_is_named_and_the_next_one_is_whole(tmp_path: Path) -> None:
    (tmp_path / log.LOG).write_text('{"event": "prom')
    log.append(tmp_path, entry("a", None))
    assert len((tmp_path / log.LOG).read_bytes().splitlines()) == 2
    with pytest.raises(ConfigError, match=r"promotions\.jsonl, line 1: not an entry"):
        log.history(tmp_path)


def move_often(out: Path, name: str) -> None:
    for _ in range(25):
        with locked(out / log.LOCK):
            log.move(out, entry(name, latest(out)))


@pytest.mark.long
def test_two_writers_leave_one_story(tmp_path: Path) -> None:
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        for done in [pool.submit(move_often, tmp_path, name) for name in ("a", "b")]:
            done.result()
    entries = log.history(tmp_path)
    assert len(entries) == 50
    for earlier, later in pairwise(entries):
        assert later.replaced == earlier.run
    assert latest(tmp_path) == entries[-1].run
