"""The table of bad inputs: for every row what is sent and what the service must answer to it.

96 rows by number, as the project's list of them has it; where our decision is another than the list's, a comment says
so. `seconds` are CPU seconds and `mebibytes` resident memory that the worker may need above what it had before.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.support.forged import (
    PNG,
)
from tests.support.wire import Reply, upload

MIB = 2**20
MAX_BYTES = 10 * MIB


@dataclass(frozen=True)
class Surroundings:
    """What a request may try to reach and must not: a file that unpickling makes, a listener on the loopback."""

    canary: Path
    listener: str


Sent = bytes | Callable[[str], Reply]
"""A request, or a function that talks to the address by itself."""
Build = Callable[[Surroundings], Mapping[str, Sent]]


@dataclass(frozen=True, kw_only=True)
class Row:
    """`codes` are those of our envelope; None where the HTTP library answers before there is a request for us."""

    number: int
    name: str
    build: Build
    statuses: tuple[int, ...]
    codes: tuple[str | None, ...]
    seconds: float = 1.0
    mebibytes: float = 64.0
    slow_sender: bool = False
    """Whether the answer is that of the deadline."""

    def __str__(self) -> str:
        return f"{self.number:02} {self.name}"


GOOD = upload(PNG)
"""What is asked again after each row."""
ROWS: list[Row] = []


def row(number: int, name: str, status: object, code: object, sent: Any, **more: Any) -> None:
    """Put a row into the table. `sent` is a request, several by name, or what makes them from the surroundings."""

    def build(surroundings: Surroundings) -> Mapping[str, Sent]:
        made = sent(surroundings) if callable(sent) else sent
        return made if isinstance(made, dict) else {"": made}

    statuses, codes = (value if isinstance(value, tuple) else (value,) for value in (status, code))
    ROWS.append(Row(number=number, name=name, build=build, statuses=statuses, codes=codes, **more))


def files(number: int, name: str, status: object, code: object, made: Callable[[], Any], **more: Any) -> None:
    """A row of one image file, or of several by name, each sent as a browser would."""

    def build(_: Surroundings) -> dict[str, Sent]:
        images = made()
        return {key: upload(data) for key, data in (images if isinstance(images, dict) else {"": images}).items()}

    row(number, name, status, code, build, **more)
