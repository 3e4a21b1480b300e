"""PostgreSQL of Debian as a real process."""

import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.processes import wait_until

PROGRAMS = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
USER = "postgres"


@contextmanager
def postgres() -> Iterator[str]:
    """The URL of an empty database on a Unix socket. Skips the test where PostgreSQL is not installed."""
    if not PROGRAMS:
        pytest.skip("there is no PostgreSQL; `apt-get install postgresql` brings it")
    # It does not run as root.
    as_user = ["runuser", "-u", USER, "--"] if os.getuid() == 0 else []
    # Not below pytest's folder, which is closed to other users; and the path of a socket has 107 characters at most.
    with tempfile.TemporaryDirectory() as name:
        folder, data = Path(name), str(Path(name, "data"))
        if as_user:
            shutil.chown(folder, USER)
        initdb = [*as_user, str(PROGRAMS[-1] / "initdb"), "-D", data, "-A", "trust", "-U", USER]
        subprocess.run(initdb, cwd="/", check=True, stdout=subprocess.DEVNULL)
        command = [*as_user, str(PROGRAMS[-1] / "postgres"), "-D", data, "-k", name, "-c", "listen_addresses="]
        with subprocess.Popen(command, cwd="/", stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server:
            wait_until(lambda: _is_ready(name))
            try:
                yield f"postgresql+psycopg://{USER}@/postgres?host={name}"
            finally:
                server.send_signal(signal.SIGTERM)
                server.wait(30)


def _is_ready(folder: str) -> bool:
    command = [str(PROGRAMS[-1] / "pg_isready"), "-q", "-h", folder]
    return subprocess.run(command, check=False).returncode == 0
