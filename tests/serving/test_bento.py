"""`bentoml build`: the bento holds all modules of the service, and requires every library that they import."""

import ast
import os
import shutil
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions
from importlib.util import find_spec
from pathlib import Path

import pytest
from pip_requirements_parser import RequirementsFile

from tests.support.paths import ROOT

PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def canonical(name: str) -> str:
    return name.lower().replace("_", "-")


@pytest.fixture(scope="module")
def bento(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `bentoml build` writes."""
    if find_spec("uv") is None and shutil.which("uv") is None:
        pytest.skip("uv is not installed, and `bentoml build` would install it into this environment")
    source, home = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("home")
    shutil.copytree(ROOT / "serving", source / "serving", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("constraints.txt", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    settings = (ROOT / "pyproject.toml").read_text()
    section = "[tool.bentoml.build.python]\n"
    (source / "pyproject.toml").write_text(settings.replace(section, f"{section}lock_packages = false\n"))
    done = subprocess.run(
        [sys.executable, "-m", "bentoml", "build", "--output", "tag"],
        cwd=source,
        env=os.environ | {"BENTOML_HOME": str(home)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    [built] = (path.parent for path in (home / "bentos").rglob("bento.yaml"))
    return built


def third_party_imports(folder: Path) -> set[str]:
    """The top-level names that the modules of a folder import, but for the standard library's and its own."""
    found = set()
    for path in folder.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                found |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                found.add(node.module.partition(".")[0])
    return found - sys.stdlib_module_names - {folder.name}


def test_a_bento_requires_all_that_its_modules_import(bento: Path) -> None:
    requirements = RequirementsFile.from_file(str(bento / "env" / "python" / "requirements.txt")).requirements
    required = {canonical(requirement.name) for requirement in requirements}
    optional = {"pyarrow"}  # `python -m serving.batch --out x.parquet` alone
    imported = third_party_imports(bento / "src" / "serving")
    assert {"orjson", "multipart", "cv2", "onnxruntime"} <= imported
    providers = packages_distributions()
    missing = {
        name for name in imported - optional if not {canonical(package) for package in providers[name]} & required
    }
    assert missing == set()


def test_a_bento_requires_what_the_extra_of_the_service_does() -> None:
    assert (
        PYPROJECT["tool"]["bentoml"]["build"]["python"]["packages"]
        == (PYPROJECT["project"]["optional-dependencies"]["serve"])
    )


def test_a_bento_holds_every_module_and_page(bento: Path) -> None:
    def files(folder: Path) -> set[Path]:
        return {
            path.relative_to(folder) for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts
        }

    assert files(bento / "src" / "serving") == files(ROOT / "serving")
