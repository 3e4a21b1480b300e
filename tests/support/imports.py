"""What the modules of a folder import, and what the project requires for it."""

import ast
import sys
import tomllib
from collections.abc import Iterable
from importlib.metadata import packages_distributions
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.support.paths import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

OPTIONAL = {"pillow_heif", "pyarrow", "pydicom", "ray"}
"""Of extras that one command needs and asks for: `parquet` and `ray` of `python -m serving.batch`, the others of the
import."""


def required(*extras: str) -> set[str]:
    """The names of the packages that an installation with these extras asks for."""
    optional = PROJECT["optional-dependencies"]
    listed = [*PROJECT["dependencies"], *(line for extra in extras for line in optional[extra])]
    return {canonicalize_name(Requirement(line).name) for line in listed}


def third_party_imports(folder: Path) -> set[str]:
    """The top-level names that the modules of a folder import, but for the standard library's and the project's."""
    found = set()
    for path in folder.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                found |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                found.add(node.module.partition(".")[0])
    return found - sys.stdlib_module_names - {"serving", "training"}


def unprovided(names: Iterable[str], packages: set[str]) -> set[str]:
    """The imports that none of these packages provides, by what is installed here."""
    providers = packages_distributions()
    return {name for name in names if not {canonicalize_name(each) for each in providers.get(name, ())} & packages}
