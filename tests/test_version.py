"""The version stands in pyproject.toml; the places that cannot derive it are compared. The habits name what exists."""

import re
import subprocess
import tomllib
from itertools import chain
from typing import Any

import pytest
import yaml

from serving.contract.selfcheck import FILE
from tests.support.markdown import PAGES
from tests.support.paths import ROOT

PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
VERSION: str = PROJECT["version"]
WORKFLOW: dict[Any, Any] = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())
TARGETS = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)


def test_manifests_and_pages_name_images_of_this_version() -> None:
    manifests = [*(ROOT / "k8s").rglob("*.yaml"), *ROOT.glob("compose*.yaml")]
    named = {
        (path.name, version)
        for path in chain(manifests, PAGES)
        for version in re.findall(r"twinlens/(?:train|serve):([\w.-]+)", path.read_text())
    }
    assert len(named) > 5
    assert {version for _, version in named} == {VERSION, f"{VERSION}-cpu"}
    components = [yaml.safe_load(path.read_text()) for path in (ROOT / "k8s" / "components").glob("*/Kustomization")]
    tags = [image["newTag"] for found in components for image in found.get("images", []) if "newTag" in image]
    assert tags == [VERSION] * 2


def test_the_changelog_begins_with_this_version() -> None:
    released = re.findall(
        r"^## \[(\d+\.\d+\.\d+)\] - \d{4}-\d\d-\d\d$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE
    )
    assert released[0] == VERSION
    assert len(released) == len(set(released)) >= 2


@pytest.mark.parametrize("kind", ["train", "serve"])
def test_the_images_get_it_from_the_makefile(kind: str) -> None:
    assert re.search(r'^ARG VERSION=""$', (ROOT / f"Dockerfile.{kind}").read_text(), re.MULTILINE)
    command = ["make", "--dry-run", "images", "REGISTRY=registry.example", "SUFFIX=-cpu", "DOCKER=builder"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert f"--build-arg VERSION={VERSION}-cpu" in done.stdout
    assert f"--tag registry.example/twinlens/$kind:{VERSION}-cpu" in done.stdout


def test_the_workflow_runs_targets_that_exist_on_the_pythons_that_are_supported() -> None:
    jobs = WORKFLOW["jobs"]
    lines = [step["run"] for job in jobs.values() for step in job["steps"] if "run" in step]
    run = {target for line in lines for target in re.findall(r"\bmake ([a-z-]+)", line)}
    assert {"lint", "test", "test-slow", "test-long", "test-containers", "train"} == run <= set(TARGETS)
    oldest = PROJECT["requires-python"].removeprefix(">=")
    assert jobs["test"]["strategy"]["matrix"]["python"][0] == oldest
    assert jobs["macos"]["runs-on"].startswith("macos")


def test_the_hooks_are_those_of_lint() -> None:
    config = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())
    entries = [hook["entry"] for repository in config["repos"] for hook in repository["hooks"]]
    assert entries == [".venv/bin/ruff format", ".venv/bin/ruff check", ".venv/bin/mypy"]
    assert all(hook["language"] == "system" for repository in config["repos"] for hook in repository["hooks"])


def test_a_report_of_a_bug_brings_the_check() -> None:
    form = yaml.safe_load((ROOT / ".github" / "ISSUE_TEMPLATE" / "bug.yml").read_text())
    [check] = [field for field in form["body"] if field["id"] == "check"]
    assert check["validations"]["required"]
    assert check["attributes"]["label"] == FILE
    assert "check-gpu" in TARGETS
    command = ["make", "--dry-run", "check-gpu"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    for part in ("python -m training check", "python -m serving check", "pytest -m gpu"):
        assert part in done.stdout
