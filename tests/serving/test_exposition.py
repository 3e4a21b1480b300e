"""The metrics of several workers, from real files as each worker writes them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from serving.exposition import exposition
from tests.support.paths import ROOT
from tests.support.replies import metric

WORKER = """
import dataclasses, sys
from pathlib import Path
from prometheus_client import CollectorRegistry
from serving.contract.model import open_model
from serving.metrics import Metrics

metrics, before, model = Metrics(CollectorRegistry()), open_model(Path(sys.argv[1])), open_model(Path(sys.argv[1]))
metrics.serves(before)
metrics.model.drifted(before, {"brightness": 0.1, "width": 0.2})
metrics.serves(model)
metrics.model.drifted(before, {"brightness": 0.9, "width": 0.9})
metrics.model.drifted(model, {"brightness": float(sys.argv[2])} if sys.argv[2:] else {})
metrics.model.drifted(before, {"brightness": 0.9, "width": 0.9})
"""
"""A worker that has reloaded its model, and measured since then what its argument says.

The model before still answers requests that were under way.
"""
ENDED = """
from prometheus_client import CollectorRegistry
from serving.exposition import forget_this_worker
from serving.metrics import Metrics

requests = Metrics(CollectorRegistry()).requests
requests.answered("/predict", 200, 0.1)
requests.set_images_in_flight(3)
forget_this_worker()
"""


def worker(model: Path, folder: Path, *drift: str) -> Path:
    """The file of the worker's drift."""
    environment = os.environ | {"PROMETHEUS_MULTIPROC_DIR": str(folder)}
    subprocess.run([sys.executable, "-c", WORKER, model, *drift], env=environment, cwd=ROOT, check=True)
    [path] = folder.glob("gauge_livemax_*.db")
    return path


@pytest.mark.parametrize("first", ["measured", "waits"])
def test_a_worker_without_a_drift_does_not_hide_that_of_others(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, first: str
) -> None:
    """In either order of the files: which comes first is the choice of the file system."""
    files = {}
    for name, drift in {"measured": ["0.4"], "waits": []}.items():
        folder = tmp_path / name
        folder.mkdir()
        files[name] = worker(run / "model.onnx", folder, *drift)
    ordered = sorted(files.values(), key=lambda path: path != files[first])
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path))
    monkeypatch.setattr("glob.glob", lambda pattern: [str(path) for path in ordered])
    text = exposition().decode()
    assert metric(text, "twinlens_drift_psi", feature="brightness") == 0.4
    assert 'feature="width"' not in text, "no worker has measured it since the reload"
    assert "-Inf" not in text


def test_the_counts_of_a_worker_that_ended_stay_and_its_gauges_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A smaller sum, which another worker answers meanwhile, would be a restart for Prometheus."""
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path))
    for _ in range(2):
        subprocess.run([sys.executable, "-c", ENDED], cwd=ROOT, check=True)
    text = exposition().decode()
    assert metric(text, "twinlens_requests_total", route="/predict", status="200") == 2
    assert "twinlens_images_in_flight" not in text
