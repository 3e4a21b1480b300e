"""One arrow: training -> serving.contract; never back, and neither side needs the other's libraries."""

import subprocess
import sys

import pytest

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
TRAINING_LIBRARIES = ["torch", "albumentations", "sklearn", "scipy", "tensorboard", "onnx", "matplotlib", "training"]
SERVING_LIBRARIES = ["bentoml", "starlette", "multipart", "prometheus_client"]


def modules(folder: str) -> list[str]:
    """Every module below a folder, as it is imported."""
    paths = sorted((ROOT / folder).rglob("*.py"))
    return [".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for path in paths]


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
    done = imports(["training.__main__"], SERVING_LIBRARIES + SERVING_ONLY)
    assert done.returncode == 0, done.stderr


def test_only_the_service_needs_bentoml() -> None:
    assert imports([name for name in SERVING if name != "serving.service"], ["bentoml"]).returncode == 0


@pytest.mark.parametrize(
    ("name", "blocked"), [("serving.service", "bentoml"), ("training.data.augmentation", "albumentations")]
)
def test_blocking_works(name: str, blocked: str) -> None:
    done = imports([name], [blocked])
    assert done.returncode != 0
    assert f"blocked: {blocked}" in done.stderr


def test_the_lint_rule_refuses_the_wrong_way() -> None:
    for folder, line in {"serving": "import torch", "training": "from serving.service import Twinlens"}.items():
        done = subprocess.run(
            [sys.executable, "-m", "ruff", "check", "--select", "TID251", "--stdin-filename", f"{folder}/x.py", "-"],
            cwd=ROOT,
            input=f"{line}\n",
            capture_output=True,
            text=True,
            check=False,
        )
        assert "TID251" in done.stdout, folder
