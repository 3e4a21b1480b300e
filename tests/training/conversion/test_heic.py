"""HEIC, with the extra `heic`."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.support.pictures import RGB, SMOOTH
from training.conversion.pillow import by_pillow_heif
from training.data.inspection.kinds import kind_of

pillow_heif = pytest.importorskip("pillow_heif")


def test_a_heic_file_becomes_its_picture(tmp_path: Path) -> None:
    path = tmp_path / "a.heic"
    pillow_heif.from_pillow(RGB).save(path, quality=-1, chroma=444)
    assert kind_of(path) == ("heic", "")
    picture = by_pillow_heif(path)
    assert picture.image.mode == "RGB"
    assert np.abs(np.asarray(picture.image).astype(int) - SMOOTH).max() <= 3


def test_its_orientation_is_applied_once(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[274] = 6
    path = tmp_path / "a.heic"
    pillow_heif.register_heif_opener()
    RGB.save(path, "HEIF", quality=-1, chroma=444, exif=exif.tobytes())
    turned = np.asarray(by_pillow_heif(path).image).astype(int)
    assert np.abs(turned - np.rot90(SMOOTH, -1)).max() <= 3


def test_a_damaged_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.heic"
    pillow_heif.from_pillow(RGB).save(path)
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises((OSError, ValueError, RuntimeError, EOFError)):
        by_pillow_heif(path)
