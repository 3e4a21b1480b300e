"""A model of images in every format: what was evaluated is what the service answers to the same files."""

import csv
import io
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from serving.contract.formats.depth import SHIFTED
from serving.contract.formats.image_header import FILE_EXTENSIONS
from serving.contract.model import open_model
from tests.support.server import serving
from training.options.config import TrainConfig
from training.train import train

RNG = np.random.default_rng(9)
COLOURS = {"dark": 60, "light": 150}
DEEP = "deep.tif"


def picture(value: int) -> Image.Image:
    return Image.fromarray((value + RNG.integers(-40, 40, (30, 36, 3))).astype(np.uint8))


def encoded(image: Image.Image, kind: str) -> bytes:
    buffer = io.BytesIO()
    if kind == DEEP:
        image = Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 16 + 7)  # 12 bits in 16
        image.save(buffer, "TIFF", compression="tiff_lzw")
    else:
        image.save(buffer, kind)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("formats")
    kinds = {kind: extensions[0] for kind, extensions in FILE_EXTENSIONS.items()} | {DEEP: ".tif"}
    for label, value in COLOURS.items():
        (root / label).mkdir()
        for kind, extension in kinds.items():
            for number in range(8):
                (root / label / f"{kind}{number}{extension}").write_bytes(encoded(picture(value), kind))
    return root


@pytest.mark.slow
def test_the_service_answers_every_format_as_it_was_evaluated(data: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"model": "mlp", "hidden": (16,), "image_size": 24, "epochs": 4, "batch_size": 16}
    run = train(
        TrainConfig(data=data, out=tmp_path / "runs", name="all", test_fraction=0.4, promote="always", **options)
    )
    card = open_model(run / "model.onnx").card
    assert card.preprocessing.depth != SHIFTED
    with (run / "predictions.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {Path(row["path"]).suffix for row in rows} == {extensions[0] for extensions in FILE_EXTENSIONS.values()}
    assert any(Path(row["path"]).name.startswith("deep") for row in rows)
    with serving(run / "model.onnx", BENTOML_HOME=str(tmp_path / "home")) as address:
        for row in rows:
            reply = httpx.post(f"{address}/predict", files={"image": (data / row["path"]).read_bytes()}).json()
            for name, probability in reply["probabilities"].items():
                assert probability == pytest.approx(float(row[name]), abs=1e-4), row["path"]
