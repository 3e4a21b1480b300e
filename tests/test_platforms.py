"""Other systems: neither side needs what only Linux has, or what Windows lacks."""

import subprocess
import sys

import pytest

from tests.support.paths import ROOT

# The names are taken away before anything else is imported; `fcntl` only from our own modules.
ELSEWHERE = """
import builtins, ctypes, importlib, os, sys
if hasattr(os, "sched_getaffinity"):
    del os.sched_getaffinity
class WithoutPrctl(ctypes.CDLL):
    def __getattr__(self, name):
        if name == "prctl":
            raise AttributeError(name)
        return super().__getattr__(name)
ctypes.CDLL = WithoutPrctl
original = builtins.__import__
def importing(name, globals=None, *more, **options):
    importer = (globals or {}).get("__name__", "").partition(".")[0]
    if name == "fcntl" and importer in ("serving", "training", "planted"):
        raise ImportError(f"{name} is not on this system")
    return original(name, globals, *more, **options)
builtins.__import__ = importing
"""
IMPORT_ALL = """
for name in sys.argv[1:]:
    importlib.import_module(name)
"""


def elsewhere(script: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", ELSEWHERE + script, *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=250, check=False)


def modules(side: str) -> list[str]:
    paths = sorted((ROOT / side).rglob("*.py"))
    return [".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for path in paths]


@pytest.mark.slow
@pytest.mark.parametrize("side", ["serving", "training"])
def test_every_module_is_imported_without_them(side: str) -> None:
    done = elsewhere(IMPORT_ALL, *modules(side))
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "use", ["exec('import fcntl', {'__name__': 'planted'})", "os.sched_getaffinity(0)", "ctypes.CDLL(None).prctl"]
)
def test_they_are_absent(use: str) -> None:
    assert elsewhere(use).returncode == 1
