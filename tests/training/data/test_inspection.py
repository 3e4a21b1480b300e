import threading
from pathlib import Path

import cv2
import joblib
import numpy as np
import pytest

from serving.contract.decode import as_channels, pixel_digest
from serving.contract.image_header import ImageError
from tests.support.datasets import write
from training.config import TrainConfig
from training.data import formats, inspection
from training.data.cache import Cache

PIXELS = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)


def encoded(ending: str) -> bytes:
    return cv2.imencode(ending, PIXELS[..., ::-1])[1].tobytes()


def test_a_file_is_known_by_its_header_its_colour_and_its_pixels() -> None:
    file, pixels = inspection.read(encoded(".png"))
    assert np.array_equal(pixels, PIXELS)
    assert (file.format, file.width, file.height, file.mode, file.orientation) == ("PNG", 30, 20, "RGB", 1)
    assert file.bytes == len(encoded(".png"))
    assert file.colour == pytest.approx(PIXELS.mean((0, 1)))
    assert file.digest == pixel_digest(PIXELS)


def test_the_same_pixels_have_the_same_digest_in_another_format() -> None:
    assert inspection.read(encoded(".png"))[0].digest == inspection.read(encoded(".bmp"))[0].digest
    assert inspection.read(encoded(".png"))[0].digest == inspection.read(PIXELS)[0].digest
    assert inspection.read(encoded(".jpg"))[0].digest != inspection.read(encoded(".png"))[0].digest


@pytest.mark.parametrize("pixels", [PIXELS[..., 0], PIXELS[..., :1]])
def test_gray_pixels_are_an_image_too(pixels: np.ndarray) -> None:
    file, decoded = inspection.read(pixels)
    assert np.array_equal(as_channels(decoded, 1)[..., 0], pixels.reshape(20, 30))
    assert (file.format, file.mode, file.bytes) == (inspection.ARRAY, "L", 0)
    assert file.colour == pytest.approx([pixels.mean()] * 3)


def test_what_is_no_image_is_refused_as_the_service_refuses_it() -> None:
    with pytest.raises(ImageError, match="the file is empty"):
        inspection.read(b"")


def test_calls_in_threads_give_their_results_in_order() -> None:
    threads: set[int] = set()

    def square(number: int) -> int:
        threads.add(threading.get_ident())
        return number**2

    assert list(inspection.in_threads(square, range(5, 400), "count")) == [number**2 for number in range(5, 400)]
    assert threading.get_ident() not in threads


def test_an_interruption_starts_no_further_calls() -> None:
    started: list[int] = []

    def wait(number: int) -> int:
        started.append(number)
        threading.Event().wait(0.02)
        return number

    results = inspection.in_threads(wait, range(10_000), "wait")
    assert next(results) == 0
    results.close()  # type: ignore[attr-defined]
    count = len(started)
    threading.Event().wait(0.2)
    assert len(started) <= count + 2 * joblib.cpu_count()
    assert count < 1000


def test_the_error_of_a_call_is_raised() -> None:
    def fail(number: int) -> int:
        if number == 30:
            raise OSError("storage")
        return number

    with pytest.raises(OSError, match="storage"):
        list(inspection.in_threads(fail, range(100), "fail"))


@pytest.mark.parametrize("odd_one", [0, 5, 11])
def test_one_image_of_another_size_means_64_px_wherever_it_is(odd_one: int, tmp_path: Path) -> None:
    for number in range(12):
        side = 30 if number == odd_one else 20
        write(tmp_path / "data" / "ab"[number % 2] / f"{number:02}.png", number, (side, side))
    source = formats.find(tmp_path / "data", Cache())
    inspected = inspection.inspect(source, TrainConfig(), Cache(tmp_path / "cache"))
    assert inspected.sizing.side == inspected.preprocessing.height == 64
    expected = [inspected.preprocessing.fitted(inspection.to_rgb(source.read(i))) for i in range(12)]
    assert np.array_equal(inspected.pixels, expected)
