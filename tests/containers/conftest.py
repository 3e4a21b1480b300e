"""The two images, a run made by one of them, and a picture for the other."""

import os
from pathlib import Path

import cv2
import numpy as np
import pytest
import yaml
from sklearn.datasets import load_digits

from tests.conftest import ROOT
from tests.containers.podman import build, build_base, missing, podman

VERSION = yaml.safe_load((ROOT / "k8s" / "Kustomization").read_text())["images"][0]["newTag"].removesuffix("-cpu")
TRAIN, SERVE = (f"localhost/twinlens/{kind}:{VERSION}" for kind in ("train", "serve"))
SOMEBODY = 12345
"""A uid that no image knows."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """All of these need what few machines have, and time."""
    reason = missing()
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.containers)
            item.add_marker(pytest.mark.timeout(1800))
            if reason is not None:
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> None:
    build_base(tmp_path_factory.mktemp("base"))
    build("train", TRAIN, REVISION="0123456789")
    build("serve", SERVE, EXTRAS="serve")


@pytest.fixture(scope="session")
def runs(images: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `train --epochs 2` leaves in a mounted folder: as somebody, read-only, without network."""
    folder = tmp_path_factory.mktemp("mounted")
    os.chown(folder, SOMEBODY, SOMEBODY)
    printed = podman(
        "run", "--rm", "--read-only", "--network=none", f"--user={SOMEBODY}:{SOMEBODY}", f"--volume={folder}:/runs",
        TRAIN, "--epochs", "2",
    )  # fmt: skip
    assert "Parity held" in printed
    return folder


def digit(number: int) -> bytes:
    """A picture of a handwritten digit."""
    pixels = load_digits().images[number] * 255 / 16
    done, encoded = cv2.imencode(".png", cv2.resize(pixels.astype(np.uint8), (32, 32), interpolation=cv2.INTER_CUBIC))
    assert done
    return bytes(encoded)
