"""DICOM, with the extra `dicom`: by the formulas of PS3.3, C.11."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support.pictures import SMOOTH
from training.conversion.dicom import by_pydicom
from training.data.inspection.kinds import kind_of

pydicom = pytest.importorskip("pydicom")
VALUES = SMOOTH[:, :, 0].astype(np.uint16) * 16
"""12 bits."""


def written(path: Path, values: np.ndarray = VALUES, **elements: Any) -> Path:
    dataset = pydicom.Dataset()
    dataset.file_meta = pydicom.dataset.FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID = pydicom.uid.SecondaryCaptureImageStorage
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID = "1.2.3.4"
    samples = values.shape[2] if values.ndim == 3 else 1
    dataset.Rows, dataset.Columns, dataset.SamplesPerPixel = values.shape[0], values.shape[1], samples
    dataset.BitsAllocated = values.itemsize * 8
    dataset.BitsStored = 12 if values.itemsize == 2 else 8
    dataset.HighBit = dataset.BitsStored - 1
    dataset.PixelRepresentation = int(values.dtype.kind == "i")
    dataset.PhotometricInterpretation = "RGB" if samples == 3 else "MONOCHROME2"
    if samples == 3:
        dataset.PlanarConfiguration = 0
    dataset.PixelData = values.tobytes()
    for name, value in elements.items():
        setattr(dataset, name, value)
    dataset.save_as(path, enforce_file_format=True)
    return path


def shown(path: Path) -> np.ndarray:
    return np.asarray(by_pydicom(path).image)


def linear(values: np.ndarray, centre: float, width: float) -> np.ndarray:
    return np.rint(np.clip((values - (centre - 0.5)) / (width - 1) + 0.5, 0, 1) * 255).astype(np.uint8)


def test_a_file_is_known_by_its_bytes(tmp_path: Path) -> None:
    assert kind_of(written(tmp_path / "IM0001")) == ("dicom", "")


def test_a_window_is_applied_after_the_modality_lut(tmp_path: Path) -> None:
    modality: dict[str, Any] = {"RescaleSlope": 2, "RescaleIntercept": -1000}
    path = written(tmp_path / "a", WindowCenter=[1200, 40], WindowWidth=[1600, 400], **modality)
    assert np.array_equal(shown(path), linear(VALUES * 2.0 - 1000, 1200, 1600))
    picture = by_pydicom(path)
    assert (picture.depth, picture.window, picture.image.mode) == ("12", "centre 1200, width 1600", "L")


def test_each_function_of_a_window(tmp_path: Path) -> None:
    window: dict[str, Any] = {"WindowCenter": 2000, "WindowWidth": 1000}
    exact = shown(written(tmp_path / "a", VOILUTFunction="LINEAR_EXACT", **window))
    assert np.abs(exact - np.clip((VALUES - 2000.0) / 1000 + 0.5, 0, 1) * 255).max() < 0.501
    sigmoid = shown(written(tmp_path / "b", VOILUTFunction="SIGMOID", **window))
    assert np.array_equal(sigmoid, np.rint(255 / (1 + np.exp(-4 * (VALUES - 2000.0) / 1000))))


def test_the_window_agrees_with_pydicom(tmp_path: Path) -> None:
    path = written(tmp_path / "a", WindowCenter=2000, WindowWidth=1500)
    dataset = pydicom.dcmread(path)
    witness = pydicom.pixels.apply_windowing(dataset.pixel_array, dataset) / 4095 * 255
    assert np.abs(shown(path) - witness).max() <= 0.51


def test_monochrome1_is_inverted(tmp_path: Path) -> None:
    path = written(tmp_path / "a", WindowCenter=2048, WindowWidth=4096, PhotometricInterpretation="MONOCHROME1")
    assert np.array_equal(shown(path), 255 - linear(VALUES, 2048, 4096))


def test_without_a_window_all_values_are_shown(tmp_path: Path) -> None:
    signed = VALUES.astype(np.int16) // 2 - 1000
    picture = by_pydicom(written(tmp_path / "a", signed))
    low, high = int(signed.min()), int(signed.max())
    assert picture.window == f"{low} to {high}"
    assert np.array_equal(np.asarray(picture.image), np.rint((signed - float(low)) / (high - low) * 255))


def test_a_voi_lut_is_applied(tmp_path: Path) -> None:
    table = pydicom.Dataset()
    table.LUTDescriptor = [4096, 0, 16]
    values = (np.arange(4096)[::-1] * 16).astype(np.uint16)
    table.add_new("LUTData", "US", values.tolist())
    picture = by_pydicom(written(tmp_path / "a", VOILUTSequence=[table]))
    assert picture.window == "VOI LUT"
    assert np.array_equal(np.asarray(picture.image), np.rint(values[VALUES] / 65535 * 255))


def test_colour_is_taken_as_it_is(tmp_path: Path) -> None:
    picture = by_pydicom(written(tmp_path / "a", SMOOTH))
    assert (picture.image.mode, picture.depth, picture.window) == ("RGB", "8", "")
    assert np.array_equal(np.asarray(picture.image), SMOOTH)


def test_several_frames_are_refused_by_name(tmp_path: Path) -> None:
    path = written(tmp_path / "a", np.concatenate([VALUES, VALUES]), Rows=30, NumberOfFrames=2)
    with pytest.raises(ValueError, match="2 frames"):
        by_pydicom(path)
    assert np.array_equal(shown(written(tmp_path / "b", NumberOfFrames=1)), shown(written(tmp_path / "c")))


def stock(name: str) -> Path:
    """A file of pydicom's own tests."""
    return Path(pydicom.data.get_testdata_file(name, download=False))


@pytest.mark.parametrize(
    "name", ["MR_small_RLE.dcm", "MR_small_jp2klossless.dcm", "MR_small_jpeg_ls_lossless.dcm", "MR_small_bigendian.dcm"]
)
def test_lossless_compression_changes_no_pixel(name: str) -> None:
    pytest.importorskip("gdcm")
    assert np.array_equal(shown(stock(name)), shown(stock("MR_small.dcm")))


@pytest.mark.parametrize(
    ("name", "mean_difference"),
    [
        ("SC_rgb_rle.dcm", 0),
        ("SC_rgb_jpeg_gdcm.dcm", 0),  # lossless
        ("SC_rgb_gdcm_KY.dcm", 0),  # JPEG 2000
        ("SC_rgb_jpeg_lossy_gdcm.dcm", 3),
    ],
)
def test_compressed_colour_is_that_of_the_uncompressed_file(name: str, mean_difference: float) -> None:
    pytest.importorskip("gdcm")
    plain = shown(stock("SC_rgb_rle_16bit.dcm")).astype(int)
    assert np.abs(shown(stock(name)).astype(int) - plain).mean() <= mean_difference


@pytest.mark.parametrize(
    ("name", "plugins", "reason"),
    [
        ("MR_small_jpeg_ls_lossless.dcm", (), r"16 bits of JPEG-LS Lossless .*; .*'\.\[dicom\]'"),
        (
            "JPGExtended.dcm",
            ("gdcm", "pillow"),
            "12 bits of JPEG Extended .* pylibjpeg pylibjpeg-libjpeg$",
        ),
    ],
)
def test_a_missing_decoder_is_named(
    monkeypatch: pytest.MonkeyPatch, name: str, plugins: tuple[str, ...], reason: str
) -> None:
    path = stock(name)
    decoder = pydicom.pixels.get_decoder(pydicom.dcmread(path).file_meta.TransferSyntaxUID)
    monkeypatch.setattr(decoder, "_available", dict.fromkeys(plugins))  # as pydicom has them by name
    with pytest.raises(ValueError, match=reason):
        by_pydicom(path)
