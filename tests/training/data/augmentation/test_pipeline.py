import dataclasses
import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import albumentations as A
import cv2
import numpy as np
import pytest
from sklearn.datasets import load_digits

from serving.contract.decode import Channels
from serving.contract.model import open_model
from tests.support.paths import ROOT
from training import train
from training.data.augmentation import pipeline
from training.errors import ConfigError
from training.options.config import TrainConfig
from training.options.config_file import from_yaml

OWN = A.Compose(
    [
        A.PadIfNeeded(40, 40),
        A.RandomCrop(32, 32),
        A.OneOf([A.HorizontalFlip(), A.Rotate(limit=20)], p=0.8),
        A.RandomBrightnessContrast(p=0.5),
    ]
)
IMAGE = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)


def saved(pipeline: object, path: Path) -> Path:
    A.save(pipeline, path, data_format="json" if path.suffix == ".json" else "yaml")
    return path


@pytest.mark.parametrize("ending", ["yaml", "yml", "json"])
def test_a_file_of_the_librarys_own_draws_what_the_pipeline_draws(tmp_path: Path, ending: str) -> None:
    path = saved(OWN, tmp_path / f"own.{ending}")
    pipeline.check(path, 32, 3)
    read = pipeline.policy(TrainConfig(augment=path))
    for key in range(20):
        changed = pipeline.apply(read, IMAGE, 0, 0, key)
        assert np.array_equal(changed, pipeline.apply(OWN, IMAGE, 0, 0, key))
        assert not np.array_equal(changed, IMAGE)


def drawn(image: np.ndarray, count: int, **options: Any) -> np.ndarray:
    transform = pipeline.policy(TrainConfig(**options))
    return np.array([pipeline.apply(transform, image, 0, 0, place) for place in range(count)])


def squares(image: np.ndarray) -> list[np.ndarray]:
    """The eight ways in which a square image can lie."""
    return [np.rot90(side, turns) for side in (image, image[:, ::-1]) for turns in range(4)]


@pytest.mark.parametrize(("symmetry", "ways"), [("mirror", (0, 4)), ("square", range(8))])
def test_a_symmetry_draws_every_way_to_lie_alike_often_and_nothing_else(symmetry: str, ways: tuple[int, ...]) -> None:
    known = {squares(IMAGE)[way].tobytes(): way for way in ways}
    images = drawn(IMAGE, 400, symmetry=symmetry, augment="none")
    counts = Counter(known[image.tobytes()] for image in images)
    assert sorted(counts) == sorted(ways)
    assert min(counts.values()) > 0.7 * 400 / len(ways)


@pytest.mark.parametrize("policy", ["light", "strong"])
def test_without_a_symmetry_images_lie_as_they_did(policy: str) -> None:
    """A six stays a six: pictures are most like the original, of all the ways in which that could lie."""
    six = (load_digits().images[6] * 255 / 16).astype(np.uint8)
    six = np.repeat(cv2.resize(six, (32, 32), interpolation=cv2.INTER_CUBIC)[..., None], 3, axis=2)
    ways = np.array([way.ravel() for way in squares(six)], float)
    likest = [
        np.argmax([np.corrcoef(image.ravel(), way)[0, 1] for way in ways]) for image in drawn(six, 200, augment=policy)
    ]
    assert np.mean(np.array(likest) == 0) > 0.95


def test_a_symmetry_beside_a_file_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"--symmetry: expected none beside a file of --augment.*got square"):
        TrainConfig(symmetry="square", augment=Path("own.yaml"))


def test_a_single_transform_is_a_pipeline_too(tmp_path: Path) -> None:
    path = saved(A.VerticalFlip(p=1), tmp_path / "flip.yaml")
    pipeline.check(path, 32, 3)
    assert np.array_equal(pipeline.apply(pipeline.read(path), IMAGE, 0), IMAGE[::-1])


def refusal(path: Path, side: int = 32, channels: Channels = 3) -> str:
    with pytest.raises(ConfigError) as error:
        pipeline.check(path, side, channels)
    assert str(error.value).startswith(f"--augment {path}: ")
    return str(error.value)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("transforms: [", "ParserError"),
        ("", "NoneType"),
        ("- Rotate", "TypeError"),
        ("{transform: {__class_fullname__: Rotates, p: 1}}", "Rotates"),
        ("{transform: {__class_fullname__: Rotate, p: 2}}", "less than or equal to 1"),
        ("{transform: {__class_fullname__: Rotate, p: 1, limits: 20}}", "does not know Rotate.limits"),
        (
            "{transform: {__class_fullname__: Compose, transforms: [{__class_fullname__: Blur, p: 1, limit: 3}]}}",
            "does not know Blur.limit",
        ),
    ],
)
def test_a_file_without_a_pipeline_is_refused_with_the_reason(tmp_path: Path, text: str, expected: str) -> None:
    (tmp_path / "x.yaml").write_text(text)
    assert expected in refusal(tmp_path / "x.yaml")


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    assert "there is no such file" in refusal(tmp_path / "x.json")


@pytest.mark.parametrize(
    ("transforms", "names"),
    [
        ([A.HorizontalFlip(), A.RandomCrop(24, 24, p=0.01)], "but RandomCrop made it uint8 (24, 24, 3)"),
        ([A.Normalize(), A.ToTensorV2()], "but Normalize, ToTensorV2 made it torch.float32 (3, 32, 32)"),
        ([A.RandomScale(p=1)], "but RandomScale made it"),
        ([A.RandomCrop(64, 64)], "RandomCrop fails on uint8 (32, 32, 3)"),
    ],
)
def test_what_changes_size_or_type_is_refused_by_name(
    tmp_path: Path, transforms: list[A.BasicTransform], names: str
) -> None:
    path = saved(A.Compose(transforms), tmp_path / "x.yaml")
    assert names in refusal(path)


def test_channels_must_stay_too(tmp_path: Path) -> None:
    path = saved(A.Compose([A.ToRGB(p=0.1)]), tmp_path / "x.yaml")
    assert "ToRGB made it uint8 (32, 32, 3)" in refusal(path, channels=1)


@pytest.mark.long
def test_a_run_keeps_the_file_and_the_card_holds_its_content(photos: Path, tmp_path: Path) -> None:
    path = saved(OWN, tmp_path / "own.yaml")
    options: dict[str, Any] = {
        "data": photos,
        "out": tmp_path,
        "model": "mlp",
        "hidden": (8,),
        "image_size": 32,
        "epochs": 1,
    }
    config = TrainConfig(**options, augment=path, name="first")
    first = train.train(config)
    assert (first / "augment.yaml").read_text() == path.read_text()
    card = open_model(first / "model.onnx").card
    assert card.provenance.config["augment"] == pipeline.content(path)
    assert json.loads((first / "report" / "report.json").read_text())["parity"]["held"]
    assert (first / "report" / "figures" / "augmented.png").stat().st_size > 10_000

    path.unlink()
    again = dataclasses.replace(from_yaml(first / "config.yaml"), name="again")
    second = open_model(train.train(again) / "model.onnx").card
    assert second.goldens == card.goldens, "the same weights"


def test_a_pipeline_that_is_refused_leaves_no_run_behind(photos: Path, tmp_path: Path) -> None:
    path = saved(A.Compose([A.Resize(16, 16)]), tmp_path / "own.yaml")
    with pytest.raises(ConfigError, match="Resize made it"):
        train.train(TrainConfig(data=photos, out=tmp_path / "runs", image_size=24, augment=path))
    assert [path.name for path in (tmp_path / "runs").iterdir()] == [".cache"]


def test_the_start_of_a_run_does_not_wait_for_albumentations() -> None:
    script = "import sys, training.__main__; sys.exit('albumentations' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=False).returncode == 0
