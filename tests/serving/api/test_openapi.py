"""Schemathesis compares the service with its own /docs.json, on every route."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.server import serving

# A schema cannot say that bytes must be a picture, so that some requests it allows are rightly refused.
EXCEPT = "positive_data_acceptance"


@pytest.mark.slow
def test_schemathesis_finds_nothing(run: Path, tmp_path: Path) -> None:
    """Valid and invalid requests from the document itself: no 5xx, no undocumented status, type or shape of answer."""
    (tmp_path / "tokens").write_text("a-token")
    environment: dict[str, Any] = {
        "BENTOML_HOME": str(tmp_path / "home"),
        "TWINLENS_TOKEN_FILE": str(tmp_path / "tokens"),
    }
    with serving(run / "model.onnx", **environment) as address:
        command = [sys.executable, "-m", "schemathesis.cli", "run", f"{address}/docs.json", "--checks", "all"]
        command += ["--header", "Authorization: Bearer a-token"]
        options = ["--exclude-checks", EXCEPT, "--max-examples", "25", "--seed", "1", "--no-color"]
        done = subprocess.run(command + options, cwd=tmp_path, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stdout[-6000:]
    assert re.search(r"([1-9]\d*) generated, \1 passed", done.stdout), done.stdout[-2000:]
