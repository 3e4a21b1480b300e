"""`bentoml build`: the bento holds all modules of the service, and requires every library that they import."""

import os
import shutil
import subprocess
import sys
import tomllib
from importlib.util import find_spec
from pathlib import Path

import pytest
from packaging.utils import canonicalize_name
from pip_requirements_parser import RequirementsFile

from tests.support.imports import OPTIONAL, third_party_imports, unprovided
from tests.support.paths import ROOT

PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


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


def test_a_bento_requires_all_that_its_modules_import(bento: Path) -> None:
    requirements = RequirementsFile.from_file(str(bento / "env" / "python" / "requirements.txt")).requirements
    imported = third_party_imports(bento / "src" / "serving") - OPTIONAL
    assert {"orjson", "multipart", "cv2", "onnxruntime"} <= imported
    assert unprovided(imported, {canonicalize_name(requirement.name) for requirement in requirements}) == set()


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
