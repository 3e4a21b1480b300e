"""TWINLENS_REQUIRE_CERTIFICATE, at the start and at a reload of a real server."""

import time
from pathlib import Path
from typing import Any

import httpx
import onnx
import pytest

from serving.contract.model import open_model
from tests.support.forged_models import rewritten
from tests.support.server import serving


def without(graph: onnx.ModelProto, card: dict[str, Any]) -> dict[str, Any]:
    return card | {"version": "uncertified", "certificate": None}


@pytest.mark.slow
def test_a_model_without_a_certificate_is_refused_where_one_is_required(run: Path, tmp_path: Path) -> None:
    certificate = open_model(run / "model.onnx").card.certificate
    assert certificate is not None
    link = tmp_path / "latest.onnx"
    link.symlink_to(rewritten(run / "model.onnx", tmp_path / "without.onnx", without))
    home: dict[str, Any] = {
        "BENTOML_HOME": str(tmp_path),
        "TWINLENS_RELOAD_S": "0.2",
        "TWINLENS_REQUIRE_CERTIFICATE": "1",
    }
    with (
        pytest.raises(AssertionError, match=r"not ready: .*latest\.onnx: its card has no certificate of promotion"),
        serving(link, **home),
    ):
        pass
    link.unlink()
    link.symlink_to(run / "model.onnx")
    with serving(link, **home) as address:
        card = httpx.get(f"{address}/model").json()
        assert card["certificate"]["test_split"] == certificate.test_split
        (tmp_path / "next").symlink_to(tmp_path / "without.onnx")
        (tmp_path / "next").replace(link)
        until = time.monotonic() + 20
        while 'outcome="refused"} 1.0' not in httpx.get(f"{address}/metrics").text:
            assert time.monotonic() < until
            time.sleep(0.2)
        assert httpx.get(f"{address}/model").json()["version"] == card["version"], "the one before answers"


@pytest.mark.slow
def test_without_the_setting_it_is_served(run: Path, tmp_path: Path) -> None:
    model = rewritten(run / "model.onnx", tmp_path / "without.onnx", without)
    with serving(model, BENTOML_HOME=str(tmp_path)) as address:
        assert httpx.get(f"{address}/model").json()["version"] == "uncertified"
