import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import cv2
import httpx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.contract import drift
from serving.contract.drift import FEATURES, Histogram, Window
from serving.contract.model import open_model
from tests.support.server import serving
from training.data.dataset import Dataset, load_dataset
from training.options.config import TrainConfig
from training.train import train

RNG = np.random.default_rng(0)
NORMAL = RNG.normal(size=1000)


def test_the_index_is_its_formula() -> None:
    histogram = Histogram(edges=(0.0, 1.0), counts=(60, 30, 10))
    values = np.repeat([-1.0, 1.0, 2.0], [20, 30, 50])
    p, q = np.array([60.5, 30.5, 10.5]) / 101.5, np.array([20.5, 30.5, 50.5]) / 101.5
    assert histogram.stability_index(values) == pytest.approx(sum((q - p) * np.log(q / p)))


@pytest.mark.parametrize("count", [100, 300, 2000])
def test_equal_distributions_stay_under_a_tenth_and_others_do_not(count: int) -> None:
    """Over 200 draws of as few images as are asked for, with as many bins as that allows."""
    bins = min(count // drift.IMAGES_PER_BIN, drift.MAX_BINS)
    same, shifted = [], []
    for _ in range(200):
        histogram = Histogram.of(RNG.normal(size=count), bins)
        assert len(histogram.counts) == bins
        same.append(histogram.stability_index(RNG.normal(size=histogram.images_needed)))
        shifted.append(histogram.stability_index(RNG.normal(1, 1, size=histogram.images_needed)))
    assert np.mean(same) < 2 / drift.IMAGES_PER_BIN
    assert np.mean(np.array(same) < 0.1) > 0.95
    assert np.mean(np.array(shifted) > 0.25) > 0.95


def test_a_change_of_a_constant_feature_raises_the_index() -> None:
    histogram = Histogram.of(np.full(300, 64.0), 6)
    assert histogram.images_needed == 50
    assert histogram.stability_index(np.full(50, 64.0)) == pytest.approx(0)
    for other in (63.0, 65.0, 4000.0):
        assert histogram.stability_index(np.full(50, other)) > 1


def test_each_of_a_few_classes_has_a_bin_and_a_new_value_one_of_its_own() -> None:
    histogram = Histogram.of(np.repeat([0.0, 1.0, 2.0], [200, 60, 40]), 6)
    assert [count for count in histogram.counts if count] == [200, 60, 40]
    assert histogram.stability_index(np.repeat([0.0, 1.0, 2.0], [400, 120, 80])) < 0.001
    assert histogram.stability_index(np.repeat([0.0, 1.0, 2.0], [120, 400, 80])) > 0.25


@settings(max_examples=100, deadline=None)
@given(values=st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=300), bins=st.integers(1, 10))
def test_every_value_falls_in_one_bin_and_no_index_is_negative(values: list[float], bins: int) -> None:
    histogram = Histogram.of(np.array(values), bins)
    assert sum(histogram.counts) == len(values)
    assert list(histogram.edges) == sorted(set(histogram.edges))
    assert histogram.stability_index(np.array(values)) == pytest.approx(0, abs=1e-12)
    assert histogram.stability_index(np.array(values[:1])) >= 0


def test_the_features_of_an_image() -> None:
    decoded = np.zeros((30, 50, 3), np.uint8)
    pixels = np.zeros((8, 8, 3), np.uint8)
    pixels[:4] = 255
    assert drift.image_features(decoded, pixels) == pytest.approx((0.5, 0.5, 50, 30))
    row = drift.feature_row((0.5, 0.5, 50.0, 30.0), np.array([0.1, 0.7, 0.2], np.float32))
    assert row == pytest.approx((0.5, 0.5, 50, 30, 1, 0.7))


def test_the_window_slides_and_publishes_no_feature_of_too_few_images() -> None:
    rows = np.column_stack([NORMAL, *[np.ones(1000)] * 5])
    reference = drift.histograms(rows)
    assert set(reference) == set(FEATURES)
    published: list[Mapping[str, float]] = []
    window = Window(reference, 500, published.append)

    def send(brightness: float) -> None:
        window.append((float(brightness), 1.0, 1.0, 1.0), np.array([0, 1], np.float32))

    for brightness in NORMAL[:499]:
        send(brightness)
    assert len(published) == 19
    assert all("brightness" not in stability for stability in published)
    assert published[-1].keys() == set(FEATURES) - {"brightness"}, "50 images are enough for a constant feature"
    send(NORMAL[499])
    assert published[-1]["brightness"] < 0.1
    for brightness in NORMAL[500:] - 1:
        send(brightness)
    assert published[-1]["brightness"] > 0.25, "the first 500 have left the window"
    for brightness in NORMAL[:500]:
        send(brightness)
    assert published[-1]["brightness"] < 0.1
    assert drift.histograms(rows[:99]) == {}


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Dataset]:
    """A run on the handwritten digits with a large test split, and its data."""
    config = TrainConfig(
        out=tmp_path_factory.mktemp("runs"),
        name="digits",
        model="mlp",
        hidden=(64,),
        epochs=8,
        val_fraction=0.35,
        test_fraction=0.3,
        quantize="int8",
    )
    return train(config), load_dataset(config)


@pytest.mark.slow
def test_the_card_holds_what_the_test_split_is_like(digits: tuple[Path, Dataset]) -> None:
    run, dataset = digits
    test = dataset.splits["test"]
    for name in ("model.onnx", "model.int8.onnx"):
        classifier = open_model(run / name)
        histograms = classifier.card.reference
        assert set(histograms) == set(FEATURES)
        assert all(sum(histogram.counts) == len(test) for histogram in histograms.values())
        predicted = classifier.predict(dataset.images[test]).argmax(1)
        assert [count for count in histograms["label"].counts if count] == np.bincount(predicted).tolist()
        assert histograms["width"].edges[-1] == 16


@pytest.fixture(scope="module")
def address(digits: tuple[Path, Dataset], tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    home, model = str(tmp_path_factory.mktemp("bentoml")), digits[0] / "model.onnx"
    limits = f"{open_model(model).card.version}:label=0.4"
    with serving(model, BENTOML_HOME=home, TWINLENS_DRIFT_WINDOW="500", TWINLENS_DRIFT_LIMITS=limits) as address:
        yield address


def measured(address: str, images: np.ndarray) -> dict[str, float]:
    """The indices in the metrics after these images."""
    encoded = [bytes(cv2.imencode(".png", image)[1]) for image in images]
    for start in range(0, len(encoded), 25):
        files = [("images", image) for image in encoded[start : start + 25]]
        assert httpx.post(f"{address}/predict_batch", files=files).status_code == 200
    lines = re.findall(r'twinlens_drift_psi\{feature="(\w+)"\} (\S+)', httpx.get(f"{address}/metrics").text)
    return {feature: float(value) for feature, value in lines}


@pytest.mark.slow
def test_the_limits_of_the_alert_are_exported_for_every_feature(address: str) -> None:
    lines = re.findall(r'twinlens_drift_limit\{feature="(\w+)"\} (\S+)', httpx.get(f"{address}/metrics").text)
    limits = {feature: float(value) for feature, value in lines}
    assert limits == dict.fromkeys(FEATURES, drift.LIMIT) | {"label": 0.4}


@pytest.mark.slow
def test_the_service_detects_darkened_images(digits: tuple[Path, Dataset], address: str) -> None:
    """The validation split, which is distributed as the test split is, as it is and at half the brightness."""
    _, dataset = digits
    images = dataset.images[dataset.splits["val"][:500]]
    assert len(images) == 500
    few = measured(address, images[:25])
    assert few == {}
    same = measured(address, images[25:])
    assert set(same) == set(FEATURES)
    assert max(same.values()) < 0.1, same
    dark = measured(address, images // 2)
    assert dark["brightness"] > 0.25
    assert dark["contrast"] > 0.25
    assert dark["width"] < 0.1
    larger = np.stack([cv2.resize(image, (20, 18)) for image in images])
    assert min(measured(address, larger)[side] for side in ("width", "height")) > 0.25
