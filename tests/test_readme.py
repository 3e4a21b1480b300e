"""Every page is true because it is run: each block of every page, in order, in one copy of the project.

Blocks of `bash` and `python` are run. Blocks of `console` need docker, a cluster, several machines or half an hour:
test_pages.py checks what they name. The pages share one copy, one service and the runs that the first page makes.
"""

import csv
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import httpx
import numpy as np
import pytest
from sklearn.datasets import load_digits

from tests.support.markdown import PAGES, blocks
from tests.support.paths import ROOT
from tests.support.server import free_port

SERVERS = {"make serve": "readyz", "tensorboard --logdir runs": ""}
START_S = 60
PRELUDE = 'set -e\ncurl() { command curl --fail-with-body --silent --show-error "$@"; }\n'
"""So that an answer that refuses a request fails the block."""
QUESTIONS = ROOT / "training" / "study" / "QUESTIONS.md"
STUDIES = (QUESTIONS, ROOT / "training" / "study" / "README.md")
"""Their studies take minutes."""
FIRST = (ROOT / "README.md", ROOT / "serving" / "README.md")
"""What a user runs first. The other pages need the runs that it makes, and another two minutes."""


@dataclass(frozen=True, kw_only=True)
class Step:
    """One block of a page, as bash runs it."""

    page: Path
    text: str


def steps(page: Path) -> list[Step]:
    """The blocks of a page that are run."""
    found = []
    for block in blocks(page):
        if block.language == "bash":
            found.append(Step(page=page, text=block.text))
        elif block.language == "python":
            found.append(Step(page=page, text=f"python - <<'EOF'\n{block.text}EOF\n"))
    return found


STEPS = [step for page in FIRST for step in steps(page)]
LATER_STEPS = [step for page in PAGES if page not in FIRST and page not in STUDIES for step in steps(page)]


def tracked() -> list[str]:
    """Files of the project: those that are committed, and new ones that git does not ignore."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "--deduplicate"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return [name for name in done.stdout.splitlines() if (ROOT / name).exists()]


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory, photos: Path) -> Path:
    """A copy of the project with this virtual environment, and the images of a user that the commands name."""
    copy = tmp_path_factory.mktemp("readme") / "twinlens"
    for name in tracked():
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, copy / name)
    (copy / ".venv").mkdir()
    for entry in Path(sys.prefix).iterdir():
        if entry.name != "installed":
            (copy / ".venv" / entry.name).symlink_to(entry)
    (copy / ".venv" / "installed").touch()

    shutil.copytree(photos, copy / "photos")
    with (copy / "labels.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "label", "site"])
        writer.writerows(
            (f"photos/{path.relative_to(photos)}", path.relative_to(photos).parts[0], ("Graz", "Wien")[number % 2])
            for number, path in enumerate(sorted(photos.rglob("*.*g")))
        )
    digits = load_digits()
    images = (digits.images[:200] * 255 / 16).astype(np.uint8)
    np.savez(copy / "cells.npz", train_images=images, train_labels=digits.target[:200] % 2)
    return copy


class Shell:
    """Runs blocks as a person would, one after the other, on ports that are free."""

    def __init__(self, project: Path) -> None:
        self.project = project
        self.port, self.board_port = free_port(), free_port()
        self.servers: list[subprocess.Popen[bytes]] = []

    def run(self, step: Step, timeout_s: float = 600) -> str:
        """What the block printed; it must exit with 0."""
        command = step.text.strip()
        if command in SERVERS:
            self.start(command)
            return ""
        done = subprocess.run(
            ["bash", "-c", PRELUDE + step.text.replace("localhost:3000", f"127.0.0.1:{self.port}")],
            cwd=self.project,
            env=self.environment(),
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )
        assert done.returncode == 0, f"{step.page}\n{step.text}\n{done.stdout}{done.stderr}"
        if step.text.startswith("make train") and self.servers:
            self.wait_for_latest()
        return done.stdout

    def wait_for_latest(self) -> None:
        """Wait until the service has taken the run that `latest` moved to, so that later answers are of one model."""
        report = json.loads((self.project / "runs" / "latest" / "report" / "report.json").read_text())
        until = time.monotonic() + START_S
        while httpx.get(f"http://127.0.0.1:{self.port}/model").json()["version"] != report["card"]["version"]:
            assert time.monotonic() < until, f"the service did not take {report['run']} within {START_S} s"
            time.sleep(0.2)

    def start(self, command: str) -> None:
        """Start a server and wait until it answers."""
        port = self.port if command == "make serve" else self.board_port
        text = command if command == "make serve" else f". .venv/bin/activate; exec {command} --port {port}"
        server = subprocess.Popen(
            ["bash", "-c", text],
            cwd=self.project,
            env=self.environment(),
            start_new_session=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        self.servers.append(server)
        until = time.monotonic() + START_S
        while time.monotonic() < until:
            assert server.poll() is None, f"{command} ended with {server.returncode}"
            try:
                if httpx.get(f"http://127.0.0.1:{port}/{SERVERS[command]}", timeout=5).status_code == 200:
                    return
            except httpx.TransportError:
                time.sleep(0.2)
        raise AssertionError(f"{command} did not answer within {START_S} s")

    def environment(self) -> dict[str, str]:
        """That of the test, with the copy's own places."""
        return os.environ | {
            "BENTOML_PORT": str(self.port),
            "BENTOML_HOME": str(self.project.parent / "home"),
            "PATH": f"{self.project / '.venv' / 'bin'}:{os.environ['PATH']}",
        }

    def stop(self) -> None:
        """End the servers."""
        for server in self.servers:
            os.killpg(server.pid, signal.SIGTERM)
            server.wait(START_S)


@pytest.fixture(scope="module")
def shell(project: Path) -> Iterator[Shell]:
    """A shell in the copy."""
    shell = Shell(project)
    try:
        yield shell
    finally:
        shell.stop()


Outputs = list[tuple[Step, str]]
"""Blocks, and what each printed."""


@pytest.fixture(scope="module")
def outputs(shell: Shell) -> Outputs:
    """The blocks of the first pages."""
    return [(step, shell.run(step)) for step in STEPS]


@pytest.fixture(scope="module")
def later_outputs(shell: Shell, outputs: Outputs) -> Outputs:
    """The blocks of the other pages, after those of the first."""
    assert outputs
    return [(step, shell.run(step)) for step in LATER_STEPS]


def printed_by(outputs: Outputs, page: str, start: str) -> str:
    """What the block of a page printed that begins with `start`."""
    [printed] = [text for step, text in outputs if step.page == ROOT / page and step.text.startswith(start)]
    return printed


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_every_block_of_the_first_pages_runs(outputs: Outputs) -> None:
    assert len(outputs) >= 10


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_every_block_of_the_other_pages_runs(later_outputs: Outputs) -> None:
    assert len(later_outputs) >= 15


@pytest.mark.slow
def test_the_first_screen_is_what_a_user_sees(outputs: Outputs) -> None:
    trained = printed_by(outputs, "README.md", "make train\n")
    assert "Parity held on all" in trained
    assert "bentoml serve" in trained
    [shown] = [json.loads(block.text) for block in blocks(ROOT / "README.md") if block.language == "json"]
    answer = json.loads(printed_by(outputs, "README.md", "curl -F image"))
    assert answer.keys() == shown.keys()
    assert answer["label"] == shown["label"] == "8"
    assert len(answer["probabilities"]) == len(shown["probabilities"]) == 3
    assert answer["confidence"] > 0.9


@pytest.mark.slow
def test_the_clients_get_the_answer_that_curl_gets(outputs: Outputs) -> None:
    curl = printed_by(outputs, "serving/README.md", "curl -H 'Content-Type: image/png'")
    label = json.JSONDecoder().raw_decode(curl)[0]["label"]
    assert printed_by(outputs, "serving/README.md", "python - <<'EOF'\nimport json").strip() == label
    triton = printed_by(outputs, "serving/README.md", "python - <<'EOF'\nfrom pathlib import Path\n\nimport numpy")
    assert re.findall(r"[\"'](.+)[\"']", triton) == [label]
    bento = printed_by(outputs, "serving/README.md", "python - <<'EOF'\nfrom pathlib import Path\n\nimport bentoml")
    assert bento.strip() == label


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_promoted_by_hand_and_rolled_back(later_outputs: Outputs) -> None:
    printed = printed_by(later_outputs, "training/README.md", "python -m training promote runs/photos")
    promoted, back = printed.splitlines()
    assert promoted == "runs/latest points to photos; logged in runs/promotions.jsonl"
    assert back.startswith("runs/latest points to ")
    assert "photos" not in back


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_every_study_of_the_pages_runs(shell: Shell) -> None:
    """Those of the questions with one seed in place of three: every level of every question, in a third of the time."""
    assert all("--seeds 3" in step.text for step in steps(QUESTIONS))
    for step in (step for page in STUDIES for step in steps(page)):
        shown = shell.run(replace(step, text=step.text.replace("--seeds 3", "--seeds 1")), 1700)
        assert "runs/studies/" in shown or "--help" in step.text
