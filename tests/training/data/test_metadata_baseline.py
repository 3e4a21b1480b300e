from dataclasses import replace

import numpy as np
import pytest

from training.data.inspection.image_file import ImageFile, read_image
from training.data.metadata_baseline import MetadataBaseline, measure

RNG = np.random.default_rng(0)
PLAIN, _ = read_image(RNG.integers(0, 256, (16, 16, 3), dtype=np.uint8))


def some(count: int) -> tuple[list[ImageFile], np.ndarray]:
    colours = RNG.uniform(0, 255, (count, 3))
    made = [replace(PLAIN, width=int(RNG.integers(100, 200)), height=100, colour=tuple(colour)) for colour in colours]
    return made, np.arange(count) % 3


def test_where_the_files_say_nothing_the_baseline_is_at_chance() -> None:
    made, labels = some(600)
    found = measure(made, labels, np.arange(600))
    assert found is not None
    assert found.chance == pytest.approx(1 / 3)
    assert abs(found.from_file - 1 / 3) < 0.08
    assert abs(found.from_file_and_colour - 1 / 3) < 0.08


@pytest.mark.parametrize(
    ("field", "values"), [("format", ("JPEG", "PNG", "BMP")), ("width", (90, 91, 300)), ("bytes", (10, 900, 2000))]
)
def test_a_format_size_or_weight_that_gives_the_class_away_is_found(field: str, values: tuple[object, ...]) -> None:
    made, labels = some(300)
    telling = [replace(file, **{field: values[label]}) for file, label in zip(made, labels, strict=True)]
    found = measure(telling, labels, np.arange(300))
    assert found is not None
    assert found.from_file > 0.95


def test_a_colour_that_gives_the_class_away_is_found_in_the_file_alone() -> None:
    made, labels = some(300)
    reddish = [replace(file, colour=(60.0 * label, 9.0, 9.0)) for file, label in zip(made, labels, strict=True)]
    found = measure(reddish, labels, np.arange(300))
    assert found is not None
    assert found.from_file < 0.45
    assert found.from_file_and_colour > 0.95


def test_images_of_one_component_never_teach_one_another() -> None:
    colours = RNG.uniform(0, 255, (60, 3))
    made = [replace(PLAIN, colour=tuple(colours[i // 5])) for i in range(300) for _ in range(1) if i // 5 < 60]
    patients = np.arange(len(made)) // 5
    labels = patients % 3
    found = measure(made, labels, patients)
    leaky = measure(made, labels, np.arange(len(made)))
    assert found is not None
    assert leaky is not None
    assert leaky.from_file_and_colour > 0.95
    assert found.from_file_and_colour < 0.6


def test_too_few_to_fold_is_none() -> None:
    made, _ = some(10)
    assert measure(made, np.array([0] * 9 + [1]), np.arange(10)) is None
    assert measure(made, np.array([0, 1] * 5), np.array([0, 1] * 5)) is None


def test_the_share_of_what_the_model_gains_over_chance() -> None:
    found = MetadataBaseline(images=100, folds=5, chance=0.2, from_file=0.3, from_file_and_colour=0.4)
    assert found.share(0.6) == pytest.approx(0.5)
    assert found.share(0.2) is None
    assert MetadataBaseline(images=9, folds=5, chance=0.2, from_file=0.1, from_file_and_colour=0.1).share(0.6) == 0
