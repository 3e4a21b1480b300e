"""What a file is by its bytes: whether training reads it, or `python -m training import` converts it."""

from pathlib import Path
from typing import Literal, get_args

from serving.contract.decode import checked_header
from serving.contract.formats.image_header import ImageError

Kind = Literal["read", "pillow", "heic", "dicom", "damaged", "other"]
"""read: training reads the file itself; pillow: Pillow decodes it; heic, dicom: an extra does; damaged: an image that
cannot be read; other: no image."""
KINDS: tuple[Kind, ...] = get_args(Kind)
HEAD = 132
"""Bytes by which every kind is known: DICOM has 128 of anything before its own."""

_JPEG_2000 = (b"\0\0\0\x0cjP  \r\n\x87\n", b"\xff\x4f\xff\x51")
_AVIF, _HEIC = {b"avif", b"avis"}, {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"}
_BY_PILLOW = {"animated_image"}
"""Reasons for which a file is not read, although its first frame can be converted."""
_NOT_READ = {*_BY_PILLOW, "unsupported_image_format"}
"""Reasons that are no damage."""


def kind_of(path: Path) -> tuple[Kind, str]:
    """The kind of a file, and for a damaged one the reason. Raises OSError."""
    with path.open("rb") as file:
        head = file.read(HEAD)
        kind = _by_head(head)
        return (kind, "") if kind else _by_contract(head + file.read())


def can_be_imported(data: bytes, error: ImageError) -> bool:
    """Whether the import converts this file, which training does not read for this error, unless it is damaged."""
    if error.code not in _NOT_READ:
        return False
    kind = _by_head(data[:HEAD]) or _by_contract(data)[0]
    return kind not in ("read", "damaged", "other")


def _by_head(head: bytes) -> Kind | None:
    """The kind of a file that only the import knows; None of any other."""
    brands = {head[8:12], *(head[at : at + 4] for at in range(16, min(len(head), 64), 4))}
    if head[4:8] == b"ftyp" and brands & _AVIF:
        return "pillow"
    if head[4:8] == b"ftyp" and brands & _HEIC:
        return "heic"
    if head.startswith(_JPEG_2000):
        return "pillow"
    return "dicom" if head[128:132] == b"DICM" else None


def _by_contract(data: bytes) -> tuple[Kind, str]:
    try:
        checked_header(data)
    except ImageError as error:
        if error.code in _BY_PILLOW or data[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
            return "pillow", ""
        return ("other", "") if error.code in ("unsupported_image_format", "empty_image") else ("damaged", str(error))
    return "read", ""
