"""The file of resized images: rows that several threads write."""

from collections.abc import Sequence
from threading import Lock
from typing import BinaryIO

import numpy as np

from serving.contract.decode import Decoded, Preprocessing, as_channels
from serving.contract.formats.depth import Depth
from serving.contract.formats.image_header import ImageError
from training.errors import DataError


class PixelFile:
    """Writes resized images as rows of one .npy file: uint8 `[images, height, width, channels]`.

    Several threads may write at a time. Rows are written, not mapped: on a full disk a write raises OSError, while a
    mapped page would end the process with SIGBUS.
    """

    def __init__(self, file: BinaryIO, names: Sequence[str], preprocessing: Preprocessing) -> None:
        self._file, self._names, self._preprocessing = file, names, preprocessing
        self._shape = (preprocessing.height, preprocessing.width, preprocessing.channels)
        self._row_bytes = int(np.prod(self._shape))
        self._lock = Lock()
        self._write_header(len(names))
        self._start = file.tell()

    @property
    def depth(self) -> Depth:
        """How values of more than 8 bits are written."""
        return self._preprocessing.depth

    def write(self, row: int, pixels: Decoded) -> None:
        """Resize one decoded RGB image and write it as a row. Raises DataError if it is too long to be cropped."""
        try:
            fitted = self._preprocessing.fitted(as_channels(pixels, self._preprocessing.channels)).tobytes()
        except ImageError as error:
            raise DataError(f"{self._names[row]}: {error}; --fit pad takes it whole") from error
        with self._lock:
            self._file.seek(self._start + row * self._row_bytes)
            self._file.write(fitted)

    def keep(self, rows: Sequence[int]) -> None:
        """Keep these rows alone, in this order, which is ascending; the file becomes shorter."""
        for new, old in enumerate(rows):
            if new < old:
                self._file.seek(self._start + old * self._row_bytes)
                pixels = self._file.read(self._row_bytes)
                self._file.seek(self._start + new * self._row_bytes)
                self._file.write(pixels)
        self._file.truncate(self._start + len(rows) * self._row_bytes)
        self._file.seek(0)
        self._write_header(len(rows))
        assert self._file.tell() == self._start, "numpy pads the header so that the first axis can grow"

    def _write_header(self, images: int) -> None:
        header = {"descr": "|u1", "fortran_order": False, "shape": (images, *self._shape)}
        np.lib.format.write_array_header_1_0(self._file, header)
