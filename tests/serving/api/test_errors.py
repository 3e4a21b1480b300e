import resource
from collections.abc import Callable
from pathlib import Path

import httpx
import numpy as np
import psutil
import pytest

from tests.support.server import serving

ROOM = 30 * 2**20


def post(address: str, image: bytes) -> httpx.Response:
    headers = {"Content-Type": "application/octet-stream"}
    return httpx.post(f"{address}/predict", content=image, headers=headers, timeout=30)


@pytest.mark.slow
def test_lack_of_memory_is_503_and_temporary(run: Path, tmp_path: Path, png: Callable[..., bytes]) -> None:
    small, large = (png(np.full((height, width), 128, np.uint8)) for height, width in ((40, 40), (5000, 8000)))
    with serving(run / "model.onnx", BENTOML_HOME=str(tmp_path)) as address:
        expected = post(address, small).json()
        unlimited = {}
        for process in psutil.Process().children(recursive=True):
            if process.status() != psutil.STATUS_ZOMBIE and process.environ().get("BENTOML_HOME") == str(tmp_path):
                unlimited[process.pid] = resource.prlimit(process.pid, resource.RLIMIT_AS)
                most = process.memory_info().vms + ROOM
                resource.prlimit(process.pid, resource.RLIMIT_AS, (most, unlimited[process.pid][1]))
        refused = post(address, large)
        assert "label" in expected
        assert refused.status_code == 503
        assert refused.json()["error"]["code"] == "out_of_memory"
        assert refused.headers["retry-after"] == "5"
        assert post(address, small).json() == expected
        for pid, limit in unlimited.items():
            resource.prlimit(pid, resource.RLIMIT_AS, limit)
        assert post(address, large).status_code == 200
