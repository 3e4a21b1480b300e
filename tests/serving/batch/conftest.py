"""Many images, for what happens in the middle."""

import os
import shutil
from pathlib import Path

import pytest


@pytest.fixture(scope="module")
def many(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """3,000 images in 30 folders."""
    root = tmp_path_factory.mktemp("many")
    source = next(photos.rglob("*.png"))
    for number in range(3000):
        folder = root / f"{number % 30}"
        folder.mkdir(exist_ok=True)
        os.link(shutil.copy(source, root / "source.tmp"), folder / f"{number}.png")
        (root / "source.tmp").unlink()
    return root
