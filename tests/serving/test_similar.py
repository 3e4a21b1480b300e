"""/similar, on a real service: the nearest training images, their pictures, and what is answered without them."""

import asyncio
import base64
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import httpx
import numpy as np
import pytest
from prometheus_client import CollectorRegistry

from serving.contract.files.names import neighbours_of
from serving.contract.model import ModelRefused, open_model
from serving.contract.neighbours.file import from_bytes, to_bytes
from serving.contract.neighbours.index import TrainingIndex
from serving.inference.predictor import Predictor
from serving.inference.similar import Searcher
from serving.metrics import Metrics
from serving.settings import Settings
from tests.support.processes import wait_until
from tests.support.replies import error, metric
from tests.support.server import serving

pytestmark = pytest.mark.slow  # a training and services

MODEL = "model.onnx"


@pytest.fixture(scope="module")
def index(aware: Path) -> TrainingIndex:
    found = open_model(aware / MODEL, training_images=True).index
    assert found is not None
    return found


@pytest.fixture
def copied(aware: Path, tmp_path: Path) -> Path:
    """The model with its training images, in a folder to change."""
    for path in (aware / MODEL, neighbours_of(aware / MODEL)):
        shutil.copy(path, tmp_path)
    return tmp_path / MODEL


def asked(address: str, data: bytes, **parameters: int) -> dict[str, Any]:
    return httpx.post(f"{address}/similar", params=parameters, files={"image": data}).json()


def test_training_images_are_nearest_to_themselves(
    aware: Path, pictures: Path, index: TrainingIndex, copied: Path, tmp_path: Path
) -> None:
    assert len(index.paths) == 144, "all training images, and no others"
    own = list(index.paths[::12])
    with serving(copied, BENTOML_HOME=str(tmp_path / "home")) as address:
        found = [asked(address, (pictures / path).read_bytes(), k=20) for path in own]
        image = (pictures / own[0]).read_bytes()
        raw = httpx.post(f"{address}/similar", content=image, headers={"Content-Type": "image/png"}).json()
        predicted = httpx.post(f"{address}/predict", files={"image": image}).json()
        wrong = [httpx.post(f"{address}/similar?k={k}", files={"image": image}) for k in ("0", "51", "x")]
        refused = httpx.post(f"{address}/similar", files={"image": b"no image"})
        text = httpx.get(f"{address}/metrics").text
    for path, answer in zip(own, found, strict=True):
        distances = [one["distance"] for one in answer["similar"]]
        assert answer["similar"][0]["path"] == path
        assert distances[0] < 0.02 < distances[1]
        assert distances == sorted(distances)
        assert len(distances) == 20
        assert all(one["label"] == one["path"].partition("/")[0] for one in answer["similar"])
        assert all(one.keys() == {"path", "label", "distance"} for one in answer["similar"]), "no picture"
    same = [sum(one["label"] == answer["similar"][0]["label"] for one in answer["similar"]) for answer in found]
    assert np.mean(same) > 15, "of the same class, mostly"
    assert raw["similar"] == found[0]["similar"][:5]
    assert {name: raw[name] for name in ("unfamiliar", "novelty", "model_version")} == {
        name: predicted[name] for name in ("unfamiliar", "novelty", "model_version")
    }
    assert [(reply.status_code, error(reply)) for reply in wrong] == [(400, "invalid_k")] * 3
    assert (refused.status_code, error(refused)) == (415, "unsupported_image_format")
    assert metric(text, "twinlens_similar_total") == len(own) + 1
    assert metric(text, "twinlens_predictions_total") == 1
    assert metric(text, "twinlens_requests_total", route="/similar", status="400") == 3


def test_pictures_are_shown_where_the_operator_says_so_and_the_file_is_as_it_was(
    pictures: Path, index: TrainingIndex, copied: Path, tmp_path: Path, png: Callable[..., bytes]
) -> None:
    data = shutil.copytree(pictures, tmp_path / "data")
    first, second = index.paths[0], index.paths[1]
    image = (data / first).read_bytes()
    (data / second).write_bytes(png(np.zeros((16, 16, 3), np.uint8)))
    shown: dict[str, Any] = {"TWINLENS_SHOW_TRAINING": "1", "TWINLENS_TRAINING_DATA": str(data)}
    with serving(copied, BENTOML_HOME=str(tmp_path / "home"), **shown) as address:
        found = {one["path"]: one["picture"] for one in asked(address, image, k=50)["similar"]}
        again = {one["path"]: one["picture"] for one in asked(address, (pictures / second).read_bytes())["similar"]}
    kind, _, content = found[first].partition(";base64,")
    assert kind == "data:image/jpeg"
    drawn = cv2.imdecode(np.frombuffer(base64.b64decode(content), np.uint8), cv2.IMREAD_COLOR)
    original = cv2.imread(str(data / first))
    assert drawn is not None
    assert original is not None
    gray = np.stack([cv2.cvtColor(pixels, cv2.COLOR_BGR2GRAY).ravel() for pixels in (drawn, original)])
    correlation: Any = np.corrcoef(gray)
    assert correlation[0, 1] > 0.95
    assert again[second] is None, "another picture is at this path now"
    assert sum(picture is None for picture in found.values()) <= 1


def test_no_picture_is_read_after_the_deadline(pictures: Path, index: TrainingIndex, copied: Path) -> None:
    image = (pictures / index.paths[0]).read_bytes()

    def shown(timeout_s: float) -> list[str | None]:
        settings = Settings(timeout_s=timeout_s, show_training=True, training_data=pictures)
        metrics = Metrics(CollectorRegistry())
        predictor = Predictor(open_model(copied, training_images=True), settings, metrics)
        return asyncio.run(Searcher(settings, metrics).search(predictor, image, 50)).pictures

    assert shown(1e-6) == [None] * 50
    assert None not in shown(60)


def test_without_training_images_all_else_is_answered(
    server: str, copied: Path, tmp_path: Path, pictures: Path
) -> None:
    image = {"image": next(pictures.rglob("*.png")).read_bytes()}
    with serving(copied, BENTOML_HOME=str(tmp_path / "home"), TWINLENS_SIMILAR="0") as address:
        assert httpx.get(f"{address}/model").json()["neighbours"] is None, "by it the page knows what to offer"
        for service, reason in ((address, "or TWINLENS_SIMILAR=0"), (server, "`--unfamiliar` makes them")):
            reply = httpx.post(f"{service}/similar", files=image)
            assert (reply.status_code, error(reply)) == (404, "no_training_images")
            assert reason in reply.json()["error"]["message"]
            assert httpx.post(f"{service}/predict", files=image).json()["label"]


def test_removed_rows_leave_a_running_service(
    copied: Path, pictures: Path, index: TrainingIndex, tmp_path: Path
) -> None:
    path, file = index.paths[7], neighbours_of(copied)
    image = (pictures / path).read_bytes()
    with serving(copied, BENTOML_HOME=str(tmp_path / "home"), TWINLENS_RELOAD_S="0.1") as address:
        assert asked(address, image)["similar"][0]["path"] == path
        removed = np.array([one == path for one in index.paths])
        (tmp_path / "new").write_bytes(to_bytes(index.without(removed)))
        (tmp_path / "new").rename(file)
        wait_until(lambda: path not in {one["path"] for one in asked(address, image)["similar"]})
        file.unlink()
        wait_until(lambda: "error" in asked(address, image))
        assert metric(httpx.get(f"{address}/metrics").text, "twinlens_reloads_total", outcome="swapped") == 2


def test_a_file_of_another_model_is_refused(copied: Path, index: TrainingIndex, tmp_path: Path) -> None:
    points = index.points.copy()
    points[3, 0] += 1
    rows = [(path, pixels.tobytes().hex()) for path, pixels in zip(index.paths, index.pixels, strict=True)]
    other: Any = TrainingIndex.of(index.metric, index.classes, points, index.labels, rows)
    assert from_bytes(to_bytes(other), tmp_path).digest == other.digest
    neighbours_of(copied).write_bytes(to_bytes(other))
    assert open_model(copied).index is None, "what is not served from it does not read it"
    with pytest.raises(ModelRefused, match=r"neighbours.npz: is of another model"):
        open_model(copied, training_images=True)
