from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from serving.contract.decode import decode
from serving.contract.formats.depth import HIGHEST, SHIFTED, Depth
from tests.support.datasets import of
from tests.support.pictures import opened
from tests.support.tiff import tiff
from training.data.dataset import Dataset
from training.data.input.depth import choose, counts, spread
from training.report.audit import audit_facts, audit_lines

RNG = np.random.default_rng(5)


def counted(values: np.ndarray) -> np.ndarray:
    return np.bincount(values.ravel(), minlength=HIGHEST + 1)


def test_opacity_does_not_count() -> None:
    values = RNG.integers(0, 4096, (9, 10, 4)).astype(np.uint16)
    values[:, :, 3] = HIGHEST
    assert np.array_equal(counts(tiff(values)), counted(values[:, :, :3]))
    assert np.array_equal(counts(tiff(values[:, :, 2:])), counted(values[:, :, 2]))


def test_percentiles_leave_out_single_values() -> None:
    values = np.concatenate([np.arange(1000), [HIGHEST], np.full(3, 40_000)])
    assert spread(counted(values)) == Depth(low=5, high=998)
    assert spread(counted(np.full(50, 7))) == Depth(low=7, high=8)
    assert spread(counted(np.full(50, HIGHEST))) == Depth(low=HIGHEST - 1, high=HIGHEST)


def test_a_range_that_is_used_well_is_kept() -> None:
    narrow, wide = Depth(low=100, high=4000), Depth(low=0, high=40_000)
    assert [choose(rule, narrow) for rule in ("auto", "percentile", "range")] == [narrow, narrow, SHIFTED]
    assert [choose(rule, wide) for rule in ("auto", "percentile", "range")] == [SHIFTED, wide, SHIFTED]


def deep_images(root: Path, highest: int, count: int = 24) -> Path:
    """PNG and TIFF of 16 bits in two classes, smooth, each of values from 0 to `highest`."""
    for number in range(count):
        noise = RNG.integers(0, highest + 1, (6, 8)).astype(np.float32)
        pixels = np.clip(cv2.resize(noise, (40, 32), interpolation=cv2.INTER_CUBIC), 0, highest).astype(np.uint16)
        path = root / "ab"[number % 2] / f"{number}"
        path.parent.mkdir(parents=True, exist_ok=True)
        if number % 4 < 2:
            path.with_suffix(".tif").write_bytes(tiff(pixels))
        else:
            assert cv2.imwrite(str(path.with_suffix(".png")), pixels)
    return root


def levels(dataset: Dataset) -> int:
    return len(np.unique(dataset.images))


@pytest.mark.parametrize("channels", [1, 3])
def test_12_bits_in_16_keep_their_gray_levels(tmp_path: Path, channels: Any) -> None:
    data = deep_images(tmp_path, 4095)
    dataset = of(data, channels=channels, image_size=32)
    depth = dataset.preprocessing.depth
    assert 0 <= depth.low < 200
    assert 3900 < depth.high <= 4095
    assert levels(dataset) > 250
    assert levels(of(data, channels=channels, image_size=32, depth="range")) <= 16
    for index, key in enumerate(dataset.keys):
        raw = (data / key).read_bytes()
        assert np.array_equal(dataset.unresized(index), decode(raw, channels, depth=depth))
        assert np.array_equal(dataset.original(index), decode(raw, depth=depth))
        assert np.array_equal(dataset.images[index], dataset.preprocessing(raw))
    lines = audit_lines(audit_facts(dataset.audit))
    assert f"24 of 24 images have more than 8 bits: {depth.low:,} to {depth.high:,} become 0 to 255" in lines


def test_a_full_range_is_kept_and_8_bits_need_no_depth(tmp_path: Path, photos: Path) -> None:
    assert of(deep_images(tmp_path, HIGHEST)).preprocessing.depth == SHIFTED
    dataset = of(photos)
    assert dataset.preprocessing.depth == SHIFTED
    assert "more than 8 bits" not in audit_lines(audit_facts(dataset.audit))


def test_images_whose_upper_bits_are_all_zero_are_not_taken_for_copies(tmp_path: Path) -> None:
    """By `>> 8` all of them would be black."""
    dataset = of(deep_images(tmp_path, 255))
    assert dataset.audit.images.duplicates.pairs == ()
    assert levels(dataset) > 200
    assert len({file.digest for file in dataset.image_set.files}) == 24


def test_a_copy_in_another_format_is_a_duplicate(tmp_path: Path) -> None:
    data = deep_images(tmp_path, 4095)
    pixels = opened((data / "a" / "2.png").read_bytes(), cv2.IMREAD_UNCHANGED)
    (data / "a" / "copy.tif").write_bytes(tiff(pixels))
    (data / "b" / "eight.png").write_bytes(bytes(cv2.imencode(".png", (pixels >> 4).astype(np.uint8))[1]))
    dataset = of(data)
    pairs = {
        (*sorted((dataset.keys[pair.first], dataset.keys[pair.second])), pair.kind)
        for pair in dataset.audit.images.duplicates.pairs
    }
    assert ("a/2.png", "a/copy.tif", "exact") in pairs
    assert any("b/eight.png" in pair for pair in pairs)
