"""The floor plan: packages that depend one way, empty `__init__.py` files, small folders and short parameter lists."""

import ast
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.imports import OPTIONAL, required, third_party_imports, unprovided
from tests.support.paths import ROOT

# Run in a fresh interpreter: what is blocked cannot be imported, directly or by anything that is.
BLOCKED = """
import importlib, sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if any(name == blocked or name.startswith(blocked + ".") for blocked in {blocked!r}):
            raise ImportError(f"blocked: {{name}}")
sys.meta_path.insert(0, Block())
for name in {names!r}:
    importlib.import_module(name)
"""
SIDES = ("serving", "training")
TRAINING_LIBRARIES = ["torch", "albumentations", "sklearn", "scipy", "tensorboard", "onnx", "matplotlib", "training"]
SERVING_LIBRARIES = ["bentoml", "starlette", "multipart", "prometheus_client"]
MOST_FILES = 14
MOST_PARAMETERS = 5
SWITCHES = {"serving/__init__.py": {"ORT_DISABLE_TELEMETRY"}, "training/__init__.py": {"NO_ALBUMENTATIONS_UPDATE"}}
"""By `__init__.py` that is not empty: the variables that keep a library from the network, and nothing else."""
WRONG_WAYS = {
    "serving/contract/card/model_card.py": "import torch",
    "serving/metrics.py": "import training.options.config",
    "serving/inference/batching.py": "import bentoml",
    "training/options/config.py": "from serving.service import Twinlens",
    "training/data/splits.py": "import albumentations",
    "training/models/networks.py": "import training.engine.checkpoint",
}
"""By file: a line whose import goes against the plan."""


def files(folder: str) -> list[Path]:
    return sorted((ROOT / folder).rglob("*.py"))


def modules(folder: str) -> list[str]:
    """Every module below a folder, as it is imported."""
    return [".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for path in files(folder)]


SERVING = modules("serving")
CONTRACT = modules("serving/contract")
SERVING_ONLY = [name for name in SERVING if name not in ("serving", *CONTRACT)]


def imports(names: list[str], blocked: list[str]) -> subprocess.CompletedProcess[str]:
    script = BLOCKED.format(names=names, blocked=blocked)
    return subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False)


def test_serving_needs_nothing_of_the_training_side() -> None:
    done = imports(SERVING, TRAINING_LIBRARIES)
    assert done.returncode == 0, done.stderr


def test_training_needs_nothing_of_the_service_but_the_contract() -> None:
    done = imports(modules("training"), SERVING_LIBRARIES + SERVING_ONLY)
    assert done.returncode == 0, done.stderr


def test_only_the_service_and_its_configuration_need_bentoml() -> None:
    need_it = {"serving.service", "serving.bento_config"}
    assert imports([name for name in SERVING if name not in need_it], ["bentoml"]).returncode == 0


@pytest.mark.parametrize(
    ("name", "blocked"), [("serving.service", "bentoml"), ("training.data.augmentation.pipeline", "albumentations")]
)
def test_blocking_works(name: str, blocked: str) -> None:
    done = imports([name], [blocked])
    assert done.returncode != 0
    assert f"blocked: {blocked}" in done.stderr


def lint_imports(folder: Path) -> subprocess.CompletedProcess[str]:
    """import-linter on the packages below a folder, without a cache of an earlier run."""
    script = "import sys; from importlinter.cli import lint_imports; sys.exit(lint_imports(no_cache=True))"
    return subprocess.run([sys.executable, "-c", script], cwd=folder, capture_output=True, text=True, check=False)


def test_imports_go_one_way() -> None:
    done = lint_imports(ROOT)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(("file", "line"), WRONG_WAYS.items(), ids=WRONG_WAYS)
def test_an_import_the_wrong_way_is_refused(tmp_path: Path, file: str, line: str) -> None:
    for side in SIDES:
        shutil.copytree(ROOT / side, tmp_path / side, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    with (tmp_path / file).open("a") as module:
        module.write(f"\n{line}\n")
    done = lint_imports(tmp_path)
    assert done.returncode == 1, done.stdout + done.stderr
    importer = file.removesuffix(".py").replace("/", ".")
    assert f" {importer} -> {line.split()[1]} (l." in done.stdout


@pytest.mark.parametrize(("side", "extra"), [("serving", "serve"), ("training", "train")])
def test_a_side_requires_by_name_what_it_imports(side: str, extra: str) -> None:
    """What another package happens to bring may leave with its next version."""
    imported = third_party_imports(ROOT / side) - OPTIONAL
    assert {"cv2", "numpy", "onnxruntime"} <= imported
    assert unprovided(imported, required(extra)) == set()


def test_a_package_holds_no_code_of_its_own() -> None:
    for path in [path for side in (*SIDES, "tests") for path in files(side) if path.name == "__init__.py"]:
        switches = SWITCHES.get(str(path.relative_to(ROOT)), set())
        tree = ast.parse(path.read_text())
        called = [ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Call)]
        assert called == [f"os.environ.setdefault('{name}', '1')" for name in sorted(switches)], path
        assert switches or not path.read_text(), path


def test_a_folder_is_small_enough_to_survey() -> None:
    folders = Counter(path.parent.relative_to(ROOT) for side in SIDES for path in files(side))
    assert {folder: count for folder, count in folders.items() if count > MOST_FILES} == {}


def long_parameter_lists(path: Path) -> Iterator[str]:
    """The functions of a file that take more than MOST_PARAMETERS, `self` and `cls` not counted."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            arguments = node.args.posonlyargs + node.args.args + node.args.kwonlyargs
            names = [argument.arg for argument in arguments if argument.arg not in ("self", "cls")]
            if len(names) > MOST_PARAMETERS:
                yield f"{path.relative_to(ROOT)}:{node.lineno} {node.name} takes {len(names)}"


@pytest.mark.parametrize("side", SIDES)
def test_a_function_takes_at_most_five_parameters(side: str) -> None:
    assert [line for path in files(side) for line in long_parameter_lists(path)] == []
