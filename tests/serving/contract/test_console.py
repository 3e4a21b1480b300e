import os
import subprocess
import sys

import pytest

from tests.support.paths import ROOT

PROGRAM = "from serving.contract.console import show_every_name; show_every_name(); print('caf\\u00e9 \\u732b \\udcfc')"


@pytest.mark.parametrize(
    ("encoding", "shown"),
    [
        ("ascii", b"caf\\xe9 \\u732b \\udcfc\n"),
        ("latin-1", b"caf\xe9 \\u732b \\udcfc\n"),
        ("utf-8", "caf\u00e9 \u732b \\udcfc\n".encode()),
    ],
)
def test_a_console_shows_what_it_cannot_encode_as_an_escape(encoding: str, shown: bytes) -> None:
    environment = os.environ | {"PYTHONIOENCODING": encoding}
    done = subprocess.run([sys.executable, "-c", PROGRAM], cwd=ROOT, env=environment, capture_output=True, check=True)
    assert done.stdout == shown
