"""DICOM images: modality LUT, VOI LUT or window, MONOCHROME1 inverted (DICOM PS3.3, C.11). Needs the extra `dicom`.

Compressed pixels are decoded by what pydicom has a plugin for. The extra brings GDCM: JPEG, also lossless, JPEG-LS,
JPEG 2000, RLE. Two transfer syntaxes need packages that the extra leaves out, one for its licence (GPL-3.0).
"""

from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Shaped
from PIL import Image

from serving.contract.extras import install_command
from training.conversion.picture import Picture, check_size, stretched

Values = Shaped[np.ndarray, "height width"]

_JPEG_EXTENDED = "1.2.840.10008.1.2.4.51"
_NOT_IN_EXTRA = {
    _JPEG_EXTENDED: "pylibjpeg pylibjpeg-libjpeg",
    "1.2.840.10008.1.2.4.201": "pylibjpeg pylibjpeg-openjpeg",
    "1.2.840.10008.1.2.4.202": "pylibjpeg pylibjpeg-openjpeg",
    "1.2.840.10008.1.2.4.203": "pylibjpeg pylibjpeg-openjpeg",
}
"""By transfer syntax: JPEG of 12 bits, and High-Throughput JPEG 2000 in three forms (DICOM PS3.6, table A-1)."""


def by_pydicom(path: Path) -> Picture:
    """Convert an image of one frame. Raises ValueError for several or without a decoder, and what pydicom raises."""
    import pydicom  # noqa: PLC0415 (an extra, which only this needs)

    dataset = pydicom.dcmread(path)
    frames = int(dataset.get("NumberOfFrames") or 1)
    if frames > 1:
        raise ValueError(f"it has {frames} frames; DICOM files of one frame are read")
    check_size(dataset.Columns, dataset.Rows)
    _check_decoder(dataset)
    return _monochrome(dataset) if dataset.SamplesPerPixel == 1 else _rgb(dataset.pixel_array, dataset)


def _check_decoder(dataset: Any) -> None:
    """Raise ValueError with what to install, where nothing installed decodes the pixels."""
    from pydicom import pixels  # noqa: PLC0415

    syntax = dataset.file_meta.TransferSyntaxUID
    if not syntax.is_encapsulated:
        return
    plugins = set(pixels.get_decoder(syntax).available_plugins)
    if syntax == _JPEG_EXTENDED and dataset.BitsStored > 8:
        plugins &= {"pylibjpeg"}  # the others decode 8 bits
    if not plugins:
        packages = _NOT_IN_EXTRA.get(syntax)
        command = f"pip install {packages}" if packages else install_command("dicom")
        raise ValueError(f"{dataset.BitsStored} bits of {syntax.name} need a package; {command}")


def _monochrome(dataset: Any) -> Picture:
    from pydicom import pixels  # noqa: PLC0415

    if dataset.PhotometricInterpretation == "PALETTE COLOR":
        table = pixels.apply_color_lut(dataset.pixel_array, dataset)
        return _rgb(table, dataset)
    values = pixels.apply_modality_lut(dataset.pixel_array, dataset)
    if "VOILUTSequence" in dataset:
        bits = int(dataset.VOILUTSequence[0].LUTDescriptor[2])
        shown, window = stretched(pixels.apply_voi(values, dataset), 0, 2**bits - 1), "VOI LUT"
    else:
        shown, window = _windowed(values, dataset)
    if dataset.PhotometricInterpretation == "MONOCHROME1":
        shown = np.invert(shown)
    return Picture(image=Image.fromarray(shown), depth=str(dataset.BitsStored), window=window)


def _windowed(values: Values, dataset: Any) -> tuple[np.ndarray, str]:
    """By the first window of the file, else from the least value to the greatest."""
    if dataset.get("WindowCenter") is None or dataset.get("WindowWidth") is None:
        low, high = float(values.min()), float(values.max())
        return stretched(values, low, high), f"{low:g} to {high:g}"
    centre, width = _first(dataset.WindowCenter), _first(dataset.WindowWidth)
    function = str(dataset.get("VOILUTFunction") or "LINEAR").upper()
    name = f"centre {centre:g}, width {width:g}"
    if width <= 0:
        raise ValueError(f"its window has a width of {width:g}")
    if function == "SIGMOID":
        exponent = np.clip(-4 * (values.astype(np.float64) - centre) / width, -700, 700)
        return np.rint(255 / (1 + np.exp(exponent))).astype(np.uint8), f"{name}, sigmoid"
    if function == "LINEAR_EXACT":
        return stretched(values, centre - width / 2, centre + width / 2), f"{name}, exact"
    return stretched(values, centre - 0.5 - (width - 1) / 2, centre - 0.5 + (width - 1) / 2), name


def _first(value: Any) -> float:
    return float(value[0] if hasattr(value, "__len__") and not isinstance(value, str) else value)


def _rgb(values: np.ndarray, dataset: Any) -> Picture:
    """Convert RGB values, to which pydicom has converted YCbCr."""
    if values.dtype == np.uint16:
        shown = (values >> 8).astype(np.uint8)
        return Picture(image=Image.fromarray(shown), depth=str(dataset.BitsStored), window="0 to 65535")
    if values.dtype != np.uint8:
        raise ValueError(f"its colours are of {values.dtype}")
    return Picture(image=Image.fromarray(values), depth=str(dataset.BitsStored))
