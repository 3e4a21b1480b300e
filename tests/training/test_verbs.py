"""The commands of the command line: each is imported when it is named."""

import subprocess
import sys
from dataclasses import is_dataclass
from pkgutil import resolve_name

import pytest

from tests.support.paths import ROOT
from training.__main__ import VERBS


@pytest.mark.parametrize("verb", VERBS.values(), ids=VERBS)
def test_the_parts_of_each_command_exist(verb: tuple[str, str, str]) -> None:
    options, command, summary = (resolve_name(f"training.{name}") for name in verb)
    assert is_dataclass(options)
    assert callable(command)
    assert callable(summary)


def test_a_start_imports_no_other_command() -> None:
    script = (
        "import sys, training.__main__, training.train; sys.exit({'optuna', 'sqlalchemy'} & {*sys.modules} != set())"
    )
    assert subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=False).returncode == 0
