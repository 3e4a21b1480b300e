"""Read the header of an image file: format, size, number of frames, orientation. No pixel is decoded.

No library is used, because its time and memory have no limit. For JPEG and PNG files of 10 MB that consist of tiny
segments, Pillow took 1.4 to 2.4 s, with the interpreter locked, and up to 440 MB. This reader stops after MAX_SEGMENTS
segments. Sources: ITU-T T.81 annex B (JPEG), the PNG specification, RFC 9649 (WebP), the BITMAPINFOHEADER family
(BMP), TIFF 6.0 and Exif 2.32 (orientation). TIFF and GIF have readers of their own.
"""

import re
import struct
from collections.abc import Iterator

from serving.contract.formats.gif import read_gif
from serving.contract.formats.header import MAX_SEGMENTS as MAX_SEGMENTS
from serving.contract.formats.header import UPRIGHT as UPRIGHT
from serving.contract.formats.header import Header as Header
from serving.contract.formats.header import ImageError as ImageError
from serving.contract.formats.header import damaged, too_many_segments
from serving.contract.formats.tiff import read_tiff, refuse_big_tiff

MIN_SIDE = 8
FILE_EXTENSIONS = {
    "JPEG": (".jpg", ".jpeg", ".jfif", ".jpe"),
    "PNG": (".png",),
    "WEBP": (".webp",),
    "BMP": (".bmp",),
    "TIFF": (".tif", ".tiff"),
    "GIF": (".gif",),
}
"""The formats that are decoded, by `Header.format`: the usual extensions of a file's name, in lower case."""
FORMATS = " or".join(", ".join(FILE_EXTENSIONS).replace("WEBP", "WebP").rsplit(",", 1))
"""The same for people."""
IMAGE_EXTENSIONS = tuple(extension for extensions in FILE_EXTENSIONS.values() for extension in extensions)
MAX_SCANS = 100
"""The most scans of a JPEG. Encoders write about ten. Even a scan of few bytes costs a pass over the whole image."""

BMP_WITH_ALPHA = 56
"""Bytes of the smallest header of a BMP that has a mask for opacity; in smaller ones the fourth byte is unused."""
_BITFIELDS = 3
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_EXIF_ORIENTATION = 0x0112
_EXIF_INTEGERS = {1: "B", 3: "H", 4: "I"}

_DHT, _JPG, _DAC, _EOI, _SOS, _APP1 = 0xC4, 0xC8, 0xCC, 0xD9, 0xDA, 0xE1
_SOF = {*range(0xC0, 0xD0)} - {_DHT, _JPG, _DAC}
_WITH_LENGTH = _SOF | {_DHT, _DAC, _SOS, 0xDB, 0xDC, 0xDD, 0xFE, *range(0xE0, 0xF0)}
# In a scan, 0xFF is followed by zero or by the code of a restart marker. Any other marker ends the scan.
_AFTER_SCAN = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")
_JPEG_MODES = {1: "L", 3: "RGB", 4: "CMYK"}
_PNG_MODES = {0: "L", 2: "RGB", 3: "P", 4: "LA", 6: "RGBA"}
_WEBP_ANIMATED, _WEBP_ALPHA = 0x02, 0x10


def read_header(data: bytes) -> Header:
    """Read the header of a file. Raises ImageError: unsupported_image_format, undecodable_image."""
    for magic, read in _READERS.items():
        if data.startswith(magic) and (magic != b"RIFF" or data[8:12] == b"WEBP"):
            try:
                return read(data)
            except (struct.error, IndexError, KeyError) as error:
                raise damaged("its header is cut off or impossible") from error
    raise ImageError("unsupported_image_format", f"the bytes are not an image of an accepted format ({FORMATS})")


def _jpeg(data: bytes) -> Header:
    frame: tuple[int, int, int] | None = None
    orientation = UPRIGHT
    coded = False  # whether the tables that decode a scan were defined
    scans = 0
    for marker, at, length in _segments(data):
        if marker in _SOF:
            if frame is not None:
                raise damaged("it describes its frame twice")
            frame = struct.unpack_from(">HHB", data, at + 1)
            coded = coded or marker > _JPG  # arithmetic coding has default tables
        elif marker == _DHT:
            coded = True
        elif marker == _APP1 and orientation == UPRIGHT and data.startswith(b"Exif\0\0", at):
            orientation = _exif_orientation(data[at + 6 : at + length])
        elif marker == _SOS:
            scans += 1
            if frame is None or not coded or scans > MAX_SCANS:
                raise damaged(f"a scan without a frame or tables, or more than {MAX_SCANS} scans")
    if frame is None or scans == 0:
        raise damaged("it holds no picture")
    height, width, components = frame
    return Header(format="JPEG", height=height, width=width, mode=_JPEG_MODES[components], orientation=orientation)


def _segments(data: bytes) -> Iterator[tuple[int, int, int]]:
    """Each segment of the first picture in a JPEG file: its marker, and the start and the length of its content."""
    at = 2
    for _ in range(MAX_SEGMENTS):
        marker = data[at + 1]
        if data[at] == marker == 0xFF:  # fill byte
            at += 1
            continue
        if data[at] == 0xFF and marker == _EOI:
            return
        [length] = struct.unpack_from(">H", data, at + 2)
        if data[at] != 0xFF or marker not in _WITH_LENGTH or length < 2:
            raise damaged("it has bytes between its segments")
        yield marker, at + 4, length - 2
        at += 2 + length
        if marker == _SOS:
            end = _AFTER_SCAN.search(data, at)
            if end is None:
                raise damaged("it is cut off within a scan")
            at = end.start()
    raise too_many_segments()


def _png(data: bytes) -> Header:
    length, kind, width, height, depth, color = struct.unpack_from(">I4sIIBB", data, 8)
    if kind != b"IHDR" or length != 13:
        raise damaged("a PNG begins with IHDR")
    mode = _PNG_MODES[color]
    frames, orientation, transparent_gray = 1, UPRIGHT, None
    transparent = mode in ("LA", "RGBA")
    in_pixels = False
    for kind, at, length in _chunks(data):
        in_pixels = in_pixels or kind == b"IDAT"
        if kind == b"eXIf":
            orientation = _exif_orientation(data[at : at + length])
        elif kind == b"acTL" and not in_pixels:
            [frames] = struct.unpack_from(">I", data, at)
        elif kind == b"tRNS" and not in_pixels:
            transparent = True
            if mode == "L":
                [gray] = struct.unpack_from(">H", data, at)
                # OpenCV ignores the transparent gray value. In decoding, it scales depths below 8 up to 8.
                transparent_gray = gray if depth >= 8 else gray * 255 // (2**depth - 1)
    return Header(
        format="PNG",
        height=height,
        width=width,
        mode=mode,
        orientation=orientation,
        frames=frames,
        transparent=transparent,
        transparent_gray=transparent_gray,
        bits=max(depth, 8),
    )


def _chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Each chunk of a PNG up to IEND: its type, and the start and the length of its content.

    All chunks are checked, because OpenCV allocates the length that a chunk claims, up to 2 GB, before it reads.
    """
    at = len(_PNG_SIGNATURE)
    for _ in range(MAX_SEGMENTS):
        length, kind = struct.unpack_from(">I4s", data, at)
        if at + 12 + length > len(data):
            raise damaged("it ends within a chunk")
        if kind == b"IEND":
            return
        yield kind, at + 8, length
        at += 12 + length
    raise too_many_segments()


def _webp(data: bytes) -> Header:
    kind = data[12:16]
    if kind == b"VP8 ":
        start, width, height = struct.unpack_from("<3sHH", data, 23)
        if start != b"\x9d\x01\x2a":
            raise damaged("a lossy WebP without its start code")
        return Header(format="WEBP", height=height & 0x3FFF, width=width & 0x3FFF, mode="RGB")
    if kind == b"VP8L":
        signature, bits = struct.unpack_from("<BI", data, 20)
        if signature != 0x2F:
            raise damaged("a lossless WebP without its signature")
        alpha = bool(bits >> 28 & 1)
        mode = "RGBA" if alpha else "RGB"
        return Header(
            format="WEBP", height=(bits >> 14 & 0x3FFF) + 1, width=(bits & 0x3FFF) + 1, mode=mode, transparent=alpha
        )
    if kind == b"VP8X":
        return _extended_webp(data)
    raise damaged("a WebP of unknown kind")


def _extended_webp(data: bytes) -> Header:
    flags, width, height = (int.from_bytes(data[at : at + size], "little") for at, size in ((20, 1), (24, 3), (27, 3)))
    frames, orientation, at = 0, UPRIGHT, 30
    for _ in range(MAX_SEGMENTS):
        kind = data[at : at + 4]
        if len(data) < at + 8 or frames > 1:
            break
        [length] = struct.unpack_from("<I", data, at + 4)
        if kind == b"ANMF":
            frames += 1
        elif kind == b"EXIF":
            orientation = _exif_orientation(data[at + 8 : at + 8 + length].removeprefix(b"Exif\0\0"))
        at += 8 + length + length % 2
    else:
        raise too_many_segments()
    alpha = bool(flags & _WEBP_ALPHA)
    return Header(
        format="WEBP",
        height=height + 1,
        width=width + 1,
        mode="RGBA" if alpha else "RGB",
        orientation=orientation,
        frames=frames if flags & _WEBP_ANIMATED else 1,
        transparent=alpha,
    )


def _bmp(data: bytes) -> Header:
    [size] = struct.unpack_from("<I", data, 14)
    if size == 12:
        width, height, _, bits = struct.unpack_from("<HHHH", data, 18)
    else:
        width, height, _, bits = struct.unpack_from("<iiHH", data, 18)  # a negative height: the top row is stored first
    if width < 0:
        raise damaged("a BMP of negative width")
    [compression] = struct.unpack_from("<I", data, 30) if size >= BMP_WITH_ALPHA else (0,)
    [alpha] = struct.unpack_from("<I", data, 66) if size >= BMP_WITH_ALPHA else (0,)
    transparent = bits == 32 and compression == _BITFIELDS and alpha != 0
    mode = "P" if bits <= 8 else "RGBA" if transparent else "RGB"
    return Header(format="BMP", height=abs(height), width=width, mode=mode, transparent=transparent)


def _exif_orientation(tiff: bytes) -> int:
    """The orientation in the first directory of an EXIF block. With a damaged block, the image counts as upright."""
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(tiff[:4])
    if order is None:
        return UPRIGHT
    try:
        [directory] = struct.unpack_from(f"{order}I", tiff, 4)
        [entries] = struct.unpack_from(f"{order}H", tiff, directory)
        for at in range(directory + 2, directory + 2 + 12 * entries, 12):
            tag, kind, count = struct.unpack_from(f"{order}HHI", tiff, at)
            if tag == _EXIF_ORIENTATION and count == 1 and kind in _EXIF_INTEGERS:
                return int(struct.unpack_from(order + _EXIF_INTEGERS[kind], tiff, at + 8)[0])
    except struct.error:
        return UPRIGHT
    return UPRIGHT


_READERS = {
    b"\xff\xd8\xff": _jpeg,
    _PNG_SIGNATURE: _png,
    b"RIFF": _webp,
    b"BM": _bmp,
    b"II*\0": read_tiff,
    b"MM\0*": read_tiff,
    b"II+\0": refuse_big_tiff,
    b"MM\0+": refuse_big_tiff,
    b"GIF87a": read_gif,
    b"GIF89a": read_gif,
}
