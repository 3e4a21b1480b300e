from pathlib import Path

import pytest

from tests.support.promotions import POOR, make


@pytest.fixture(scope="session")
def two(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a good run, which `latest` points to, and a poor one, which was refused."""
    out = tmp_path_factory.mktemp("two") / "runs"
    make(photos, out, name="good")
    make(photos, out, name="poor", **POOR)
    return out
