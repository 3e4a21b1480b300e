from pathlib import Path
from unittest.mock import Mock

import cv2
import numpy as np
import pytest

from training.data import duplicates, formats
from training.data.cache import Cache
from training.data.duplicates import Pair
from training.data.inspection.image_file import to_rgb
from training.data.inspection.pixels import inspect_pixels
from training.options.config import TrainConfig


def test_fingerprints_are_mapped_from_a_file_that_is_gone_afterwards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of the readable images, in their order; also over the borders of the parts that are read at once."""
    noise = np.random.default_rng(0).integers(0, 256, (30, 48, 48, 3), dtype=np.uint8)
    noise[20] = np.rot90(noise[3])
    for number, pixels in enumerate(noise):
        place = tmp_path / "data" / "ab"[number % 2] / f"{number:02}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(place), pixels)
    (tmp_path / "data" / "a" / "04.png").write_bytes(b"no image")
    find = Mock(side_effect=duplicates.find)
    monkeypatch.setattr(duplicates, "find", find)
    monkeypatch.setattr(duplicates, "PART", 7)
    source = formats.find_source(tmp_path / "data", Cache())
    inspected = inspect_pixels(source, TrainConfig(image_size=32), Cache(tmp_path / "cache"))
    fingerprints, _ = find.call_args.args
    assert isinstance(fingerprints, np.memmap)
    expected = [duplicates.fingerprint(to_rgb(source.read(i))) for i in inspected.contents.positions]
    assert np.array_equal(fingerprints, expected)
    keys = [source.keys[position] for position in inspected.contents.positions]
    [pair] = inspected.contents.duplicates.pairs
    assert isinstance(pair, Pair)
    assert {Path(keys[index]).stem for index in (pair.first, pair.second)} == {"03", "20"}
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and path.stat().st_size == fingerprints.nbytes]
