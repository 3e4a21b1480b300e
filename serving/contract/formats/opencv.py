"""Decode a whole file by OpenCV, whose errors become refusals."""

import cv2
import numpy as np

from serving.contract.formats.header import ImageError


def imdecode(data: bytes, flags: int) -> np.ndarray:
    """`cv2.imdecode` without EXIF orientation. Raises ImageError: undecodable_image; MemoryError."""
    try:
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), flags | cv2.IMREAD_IGNORE_ORIENTATION)
    except cv2.error as error:
        if error.code == cv2.Error.StsNoMem:
            raise MemoryError(str(error)) from error  # not a fault of the file
        raise ImageError("undecodable_image", "the file is damaged: its pixels cannot be decoded") from error
    if pixels is None:
        raise ImageError("undecodable_image", "the file is damaged or cut off: its pixels cannot be decoded")
    return pixels
