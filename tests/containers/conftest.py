"""The two images, a run made by one of them, and a picture for the other."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.containers.images import SERVE, SOMEBODY, TRAIN, VERSION
from tests.containers.podman import build, build_base, missing, podman, remove_replaced


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
def images(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    remove_replaced()
    build_base(tmp_path_factory.mktemp("base"))
    build("train", TRAIN, VERSION=VERSION, REVISION="0123456789")
    build("serve", SERVE, VERSION=VERSION, EXTRAS="serve")
    yield
    remove_replaced()


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
