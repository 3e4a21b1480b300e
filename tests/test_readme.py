"""The README is true because it is run: every command in it, in order, in a copy of the project."""

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
from pathlib import Path

import httpx
import numpy as np
import pytest
from sklearn.datasets import load_digits

from serving.settings import PREFIX, Settings
from tests.support.paths import ROOT
from tests.support.server import free_port
from training.config import TrainConfig

README = (ROOT / "README.md").read_text()
BLOCKS = [
    text if kind == "bash" else f"python - <<'EOF'\n{text}EOF\n"
    for kind, text in re.findall(r"```(bash|python)\n(.*?)```", README, flags=re.DOTALL)
]
SERVERS = {"make serve": "readyz", "tensorboard --logdir runs": ""}
START_S = 60


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory, photos: Path) -> Path:
    """A copy of the project with this virtual environment, and the data of a user that the README's commands name."""
    copy = tmp_path_factory.mktemp("readme") / "twinlens"
    tracked = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    for name in tracked.stdout.splitlines():
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
        writer.writerow(["path", "label"])
        writer.writerows(
            (f"photos/{path.relative_to(photos)}", path.relative_to(photos).parts[0])
            for path in sorted(photos.rglob("*.*g"))
        )
    digits = load_digits()
    images = (digits.images[:200] * 255 / 16).astype(np.uint8)
    np.savez(copy / "cells.npz", train_images=images, train_labels=digits.target[:200] % 2)
    return copy


class Shell:
    """Runs the README's blocks as a person would, one after the other, on ports that are free."""

    def __init__(self, project: Path) -> None:
        self.project = project
        self.port, self.board_port = free_port(), free_port()
        self.servers: list[subprocess.Popen[bytes]] = []

    def run(self, block: str) -> str:
        command = block.split("#", maxsplit=1)[0].strip()
        if command in SERVERS:
            self.start(command)
            return ""
        text = "set -e\n" + block.replace("localhost:3000", f"127.0.0.1:{self.port}")
        done = subprocess.run(
            ["bash", "-c", text],
            cwd=self.project,
            env=self.environment(),
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def start(self, command: str) -> None:
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
        return os.environ | {"BENTOML_PORT": str(self.port), "BENTOML_HOME": str(self.project.parent / "home")}

    def stop(self) -> None:
        for server in self.servers:
            os.killpg(server.pid, signal.SIGTERM)
            server.wait(START_S)


@pytest.fixture(scope="module")
def outputs(project: Path) -> Iterator[list[str]]:
    """What each block printed."""
    shell = Shell(project)
    try:
        yield [shell.run(block) for block in BLOCKS]
    finally:
        shell.stop()


@pytest.mark.timeout(420)
def test_every_command_runs(outputs: list[str]) -> None:
    assert len(outputs) == len(BLOCKS) >= 7


def test_the_first_screen_is_what_one_sees(outputs: list[str]) -> None:
    trained = outputs[BLOCKS.index(next(block for block in BLOCKS if block.startswith("make train")))]
    assert "Parity held on all" in trained
    assert "bentoml serve" in trained
    shown = json.loads(re.search(r"```json\n(.*?)```", README, flags=re.DOTALL)[1])
    answer = json.loads(next(output for output in outputs if output.startswith('{"label"')))
    assert answer.keys() == shown.keys()
    assert answer["label"] == shown["label"] == "8"
    assert len(answer["probabilities"]) == len(shown["probabilities"]) == 3
    assert answer["confidence"] > 0.9


def test_the_client_gets_the_answer_that_curl_gets(outputs: list[str]) -> None:
    """Of the model that was published last: by then others have been trained than that of the first screen."""
    client = outputs[BLOCKS.index(next(block for block in BLOCKS if block.startswith("python - <<")))]
    curl = outputs[BLOCKS.index(next(block for block in BLOCKS if "--data-binary @.github/digit.png" in block))]
    assert client.strip() == json.JSONDecoder().raw_decode(curl)[0]["label"]


def test_the_tables_name_what_there_is() -> None:
    rows = re.findall(r"^\| (`--.*?) \|", README, flags=re.MULTILINE)
    options = {name for row in rows for name in re.findall(r"`--([a-z-]+)`", row)}
    assert len(options) > 30
    assert options - {"config"} <= {field.replace("_", "-") for field in TrainConfig.__dataclass_fields__}
    for field in Settings.model_fields:
        assert f"`{PREFIX}{field.upper()}`" in README, field
    documented = set(re.findall(r"`(twinlens_\w+?)(?:_total)?(?:\{[^}]*\})?`", README))
    code = (ROOT / "serving" / "metrics.py").read_text()
    assert documented == set(re.findall(r'"(twinlens_\w+)"', code))


def test_the_layout_names_every_package() -> None:
    layout = re.search(r"## Layout\n\n```\n(.*?)```", README, flags=re.DOTALL)[1]
    packages = {path.parent.name for side in ("serving", "training") for path in (ROOT / side).rglob("__init__.py")}
    assert packages == set(re.findall(r"^ *(\w+)/", layout, flags=re.MULTILINE)) - {"k8s", "tests"}
