"""A load on a server and what came of it; closed loop, by wrk: how much the server can do."""

import json
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.bench.servers import Request

SCRIPT = Path(__file__).with_name("load.lua")


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What came of a block of load; `errors` are statuses other than 200, lost connections and time-outs."""

    requests: int
    seconds: float
    p50_ms: float
    p99_ms: float
    errors: int


def closed_loop(address: str, requests: Sequence[Request], concurrency: int, seconds: int, folder: Path) -> Outcome:
    """`concurrency` connections of wrk, each sending its next request when it has the answer to the one before."""
    bodies = [folder / f"body-{number}" for number in range(len(requests))]
    for path, request in zip(bodies, requests, strict=True):
        path.write_bytes(request.body)
    url = address + requests[0].path
    options = ["--threads", "1", "--connections", str(concurrency), "--duration", f"{seconds}s", "--timeout", "10s"]
    command: list[str | Path] = ["wrk", *options, "--script", SCRIPT, url, "--", requests[0].content_type, *bodies]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return Outcome(**json.loads(done.stdout.strip().splitlines()[-1]))
