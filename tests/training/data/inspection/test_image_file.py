import hashlib
from pathlib import Path

import cv2
import numpy as np
import pytest

from serving.contract.decode import as_channels, pixel_digest
from serving.contract.formats.image_header import ImageError
from serving.contract.neighbours.index import Neighbour
from serving.inference.similar import picture
from serving.settings import Settings
from training.data.inspection.image_file import ARRAY, read_image

PIXELS = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)


def encoded(ending: str) -> bytes:
    return cv2.imencode(ending, PIXELS[..., ::-1])[1].tobytes()


def test_a_file_is_known_by_its_header_its_colour_and_its_pixels() -> None:
    file, pixels = read_image(encoded(".png"))
    assert np.array_equal(pixels, PIXELS)
    assert (file.format, file.width, file.height, file.mode, file.orientation) == ("PNG", 30, 20, "RGB", 1)
    assert file.bytes == len(encoded(".png"))
    assert file.colour == pytest.approx(PIXELS.mean((0, 1)))
    assert file.digest == pixel_digest(PIXELS)


def test_the_same_pixels_have_the_same_digest_in_another_format() -> None:
    assert read_image(encoded(".png"))[0].digest == read_image(encoded(".bmp"))[0].digest
    assert read_image(encoded(".png"))[0].digest == read_image(PIXELS)[0].digest
    assert read_image(encoded(".jpg"))[0].digest != read_image(encoded(".png"))[0].digest


def test_an_image_of_16_bits_is_known_by_its_stored_values_in_training_and_service(tmp_path: Path) -> None:
    values = np.random.default_rng(1).integers(0, 2**16, (20, 30), dtype=np.uint16)
    data = cv2.imencode(".png", values)[1].tobytes()
    file, _ = read_image(data)
    expected = repr((20, 30, 2)).encode() + values.tobytes()  # as entries of `forget` and cards of older models have it
    assert file.digest == hashlib.sha256(expected).hexdigest()
    (tmp_path / "a.png").write_bytes(data)
    neighbour = Neighbour(path="a.png", label="a", distance=0.0, pixels=file.digest)
    assert picture(tmp_path, neighbour, Settings()) is not None
    (tmp_path / "a.png").write_bytes(cv2.imencode(".png", values ^ 1)[1].tobytes())
    assert picture(tmp_path, neighbour, Settings()) is None, "another image, with the same pixels of 8 bits"


@pytest.mark.parametrize("pixels", [PIXELS[..., 0], PIXELS[..., :1]])
def test_gray_pixels_are_an_image_too(pixels: np.ndarray) -> None:
    file, decoded = read_image(pixels)
    assert np.array_equal(as_channels(decoded, 1)[..., 0], pixels.reshape(20, 30))
    assert (file.format, file.mode, file.bytes) == (ARRAY, "L", 0)
    assert file.colour == pytest.approx([pixels.mean()] * 3)


def test_what_is_no_image_is_refused_as_the_service_refuses_it() -> None:
    with pytest.raises(ImageError, match="the file is empty"):
        read_image(b"")
