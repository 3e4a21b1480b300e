"""One tiny model trained for real, and one real server process that serves it, for all tests."""

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ["BENTOML_DO_NOT_TRACK"] = "True"
# Two tests run side by side: threads that wait for one another on the same two cores would triple the time.
os.environ["OMP_NUM_THREADS"] = "1"

import cv2
import numpy as np
import pytest
from jaxtyping import install_import_hook

import tests.support.shapes
from tests.support.server import serving

# Before either is imported: types and shapes of annotated calls are checked, in tests only.
install_import_hook("serving", "beartype.beartype")
install_import_hook("training", f"{tests.support.shapes.__name__}.checked")


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip a test that needs a GPU where there is none."""
    if item.get_closest_marker("gpu"):
        import torch

        if not torch.cuda.is_available():
            pytest.skip("torch sees no GPU")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the files first that have a test with a longer time limit: at the end, one process would wait for them."""
    limits: dict[Path, float] = {}
    for item in items:
        mark = item.get_closest_marker("timeout")
        limits[item.path] = max(limits.get(item.path, 0.0), mark.args[0] if mark else 0.0)
    items.sort(key=lambda item: -limits[item.path])


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Class folders with 3 x 30 pictures: one colour a class, noise, several sizes, JPEG and PNG, awkward names."""
    root = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for label, colour in {"Red rash": (40, 40, 200), "blue": (200, 60, 40), "green leaf": (60, 180, 60)}.items():
        nested = "nested folder" if label == "green leaf" else f"nested {label}"  # one name in all classes is a warning
        (root / label / nested).mkdir(parents=True)
        for number in range(30):
            height, width = rng.integers(30, 70, size=2)
            noise = rng.integers(-40, 40, size=(height, width, 3))
            picture = np.clip(np.array(colour) + noise, 0, 255).astype(np.uint8)
            name = [f"{number}.png", f"photo {number}.JPG", f"{nested}/{'long ' * 30}{number}.jpeg"][number % 3]
            assert cv2.imwrite(str(root / label / name), picture)
    return root


@pytest.fixture(scope="session")
def run(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run on `photos`."""
    from training.options.config import TrainConfig
    from training.train import train

    out = tmp_path_factory.mktemp("runs")
    return train(
        TrainConfig(
            data=photos,
            out=out,
            name="tiny",
            val_fraction=0.2,
            model="mlp",
            hidden=(32,),
            image_size=24,
            epochs=4,
            batch_size=16,
        )
    )


@pytest.fixture(scope="session")
def server(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a service of `run`'s model, with limits small enough to be reached by a test."""
    home = tmp_path_factory.mktemp("bentoml")
    with serving(
        run / "model.onnx", BENTOML_HOME=str(home), TWINLENS_MAX_BYTES="200000", TWINLENS_MAX_BATCH="8"
    ) as address:
        yield address


@pytest.fixture(scope="session")
def png() -> Callable[..., bytes]:
    """Encode uint8 pixels, RGB or gray, as PNG."""

    def encode(pixels: np.ndarray) -> bytes:
        done, encoded = cv2.imencode(".png", pixels[..., ::-1] if pixels.ndim == 3 else pixels)
        assert done
        return bytes(encoded)

    return encode


@pytest.fixture(autouse=True, scope="session")
def _one_baseline_for_the_same_images() -> Iterator[None]:
    """Hundreds of runs train on the same pictures, and half of their time went into the forests on their metadata."""
    from training.data import metadata_baseline

    known: dict[Any, Any] = {}
    measure = metadata_baseline.measure

    def once(files: Any, labels: Any, components: Any) -> Any:
        key = tuple(files), labels.tobytes(), components.tobytes()
        if key not in known:
            known[key] = measure(files, labels, components)
        return known[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(metadata_baseline, "measure", once)
        yield


@pytest.fixture(autouse=True)
def _signals() -> Iterator[None]:
    """What a test installs does not outlast it."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)
