"""The first page of a TIFF file (TIFF 6.0): its tags, all checked before a pixel is decoded."""

import struct
from collections.abc import Iterator
from dataclasses import dataclass

from serving.contract.formats.header import MAX_SEGMENTS, UPRIGHT, Header, ImageError, damaged, too_many_segments

MAX_TAGS = 500
MAX_VALUES = 4 * MAX_SEGMENTS
"""The most values of a tag that is read: the offsets of strips or tiles, by plane."""
MAX_TABLES = 2**22
"""Bytes of the JPEG tables of a page times the number of its strips or tiles: the tables are read again for each. At
the largest numbers that are allowed for both, this would take a minute. Scanners write tables of 1,000 bytes at most.
"""
SPARE_PIXELS = 2**22
"""What tiles may hold beyond four times the image: one tile of 2,048 x 2,048 around a small image."""
MAX_BLOCK = 2**27
"""The most bytes of a strip or tile, unpacked: more than 40 megapixels of RGB with 8 bits."""

SUBFILE, WIDTH, HEIGHT, BITS, COMPRESSION, PHOTOMETRIC, FILL_ORDER = 254, 256, 257, 258, 259, 262, 266
STRIP_OFFSETS, ORIENTATION, SAMPLES, ROWS, STRIP_BYTES, PLANES = 273, 274, 277, 278, 279, 284
PREDICTOR, COLOURS, TILE_WIDTH, TILE_HEIGHT, TILE_OFFSETS, TILE_BYTES = 317, 320, 322, 323, 324, 325
EXTRA, FORMAT, JPEG_TABLES = 338, 339, 347
READ = {SUBFILE, WIDTH, HEIGHT, BITS, COMPRESSION, PHOTOMETRIC, FILL_ORDER, STRIP_OFFSETS, ORIENTATION, SAMPLES, ROWS}
READ |= {STRIP_BYTES, PLANES, PREDICTOR, COLOURS, TILE_WIDTH, TILE_HEIGHT, TILE_OFFSETS, TILE_BYTES, EXTRA, FORMAT}
READ |= {JPEG_TABLES}

WHITE_IS_ZERO, BLACK_IS_ZERO, RGB, PALETTE, YCBCR = 0, 1, 2, 3, 6
_SAMPLES = {WHITE_IS_ZERO: 1, BLACK_IS_ZERO: 1, PALETTE: 1, RGB: 3, YCBCR: 3}
PHOTOMETRICS = {4: "transparency mask", 5: "CMYK", 8: "CIE L*a*b*", 32803: "a camera's raw"}
NONE, LZW, JPEG, DEFLATES, PACKBITS = 1, 5, 7, (8, 32946), 32773
COMPRESSIONS = {2: "CCITT", 3: "CCITT", 4: "CCITT", 6: "old JPEG", 34712: "JPEG 2000", 34925: "LZMA", 50000: "ZSTD"}
"""Names of some that are refused."""
IGNORED, PREMULTIPLIED, OPACITY = 0, 1, 2
"""What an extra sample is, by tag EXTRA."""
_TYPES = {1: "B", 3: "H", 4: "I", 7: "B"}

Tags = dict[int, tuple[int, ...]]


@dataclass(frozen=True, kw_only=True)
class TiffPage:
    """The first page; every value was checked. Sizes are in pixels."""

    order: str
    """`<` or `>`, as `struct` names it."""
    tags: Tags
    height: int
    width: int
    bits: int
    """Bits of a sample: 1, 2, 4, 8 or 16."""
    samples: int
    """Samples of a pixel, with opacity."""
    photometric: int

    def first(self, tag: int, default: int) -> int:
        """The first value of a tag."""
        return self.tags.get(tag, (default,))[0]

    @property
    def compression(self) -> int:
        """How each strip or tile is compressed."""
        return self.first(COMPRESSION, NONE)

    @property
    def planes(self) -> int:
        """How many strips or tiles lie one on another: 1, or one of each sample."""
        return self.samples if self.first(PLANES, 1) == 2 else 1

    @property
    def tiled(self) -> bool:
        """Whether the image is cut in tiles, which are stored in full, and not in strips."""
        return TILE_OFFSETS in self.tags

    @property
    def block(self) -> tuple[int, int]:
        """Height and width of a strip or tile."""
        if self.tiled:
            return self.tags[TILE_HEIGHT][0], self.tags[TILE_WIDTH][0]
        return min(self.first(ROWS, self.height), self.height), self.width

    @property
    def row_bytes(self) -> int:
        """Bytes of a row of a strip or tile, in one plane."""
        return -(-self.block[1] * self.bits * (self.samples // self.planes) // 8)

    @property
    def grid(self) -> tuple[int, int]:
        """The number of strips or tiles below each other, and beside each other."""
        rows, columns = self.block
        return -(-self.height // rows), -(-self.width // columns)

    @property
    def extra(self) -> int | None:
        """What the sample beside gray or colour is; None: there is none."""
        return self.first(EXTRA, IGNORED) if self.samples > _SAMPLES[self.photometric] else None

    @property
    def places(self) -> list[tuple[int, int]]:
        """Offset and length in the file of each strip or tile, plane by plane."""
        offsets, lengths = (TILE_OFFSETS, TILE_BYTES) if self.tiled else (STRIP_OFFSETS, STRIP_BYTES)
        return list(zip(self.tags[offsets], self.tags[lengths], strict=False))


def read_tiff(data: bytes) -> Header:
    """Read the header of the first page. Raises ImageError, struct.error, KeyError."""
    page = read_page(data)
    transparent = page.extra in (PREMULTIPLIED, OPACITY)
    colour = {PALETTE: "P", WHITE_IS_ZERO: "L", BLACK_IS_ZERO: "L"}.get(page.photometric, "RGB")
    return Header(
        format="TIFF",
        height=page.height,
        width=page.width,
        mode=colour + "A" * transparent,
        bits=max(page.bits, 8),
        orientation=page.first(ORIENTATION, UPRIGHT),
        transparent=transparent,
    )


def refuse_big_tiff(_: bytes) -> Header:
    """Raises ImageError: unsupported_image_format."""
    raise unsupported("with offsets of 64 bits (BigTIFF)")


def read_page(data: bytes) -> TiffPage:
    """Read the tags of the first page and check them. Raises ImageError, struct.error, KeyError."""
    order = "<" if data[:2] == b"II" else ">"
    tags: Tags = {}
    for tag, values in _tags(data, order):
        tags.setdefault(tag, values)
    bits = tags.get(BITS, (1,))
    page = TiffPage(
        order=order,
        tags=tags,
        height=tags[HEIGHT][0],
        width=tags[WIDTH][0],
        bits=bits[0],
        samples=tags.get(SAMPLES, (1,))[0],
        photometric=tags[PHOTOMETRIC][0],
    )
    for refused, what in _refusals(page, bits):
        if refused:
            raise unsupported(what)
    tiles = (TILE_WIDTH, TILE_HEIGHT, TILE_OFFSETS, TILE_BYTES)
    if any(tag not in tags for tag in (tiles if page.tiled else (STRIP_OFFSETS, STRIP_BYTES))):
        raise damaged("its first page does not state where its strips or tiles are")
    return page


def _tags(data: bytes, order: str) -> Iterator[tuple[int, tuple[int, ...]]]:
    [at] = struct.unpack_from(f"{order}I", data, 4)
    [count] = struct.unpack_from(f"{order}H", data, at)
    if count > MAX_TAGS:
        raise damaged(f"its first page has more than {MAX_TAGS} tags")
    left = 2 * MAX_VALUES
    for entry in range(at + 2, at + 2 + 12 * count, 12):
        tag, kind, values = struct.unpack_from(f"{order}HHI", data, entry)
        if tag not in READ or kind not in _TYPES or values == 0:
            continue
        left -= values
        if values > MAX_VALUES or left < 0:
            raise too_many_segments()
        layout = f"{order}{values}{_TYPES[kind]}"
        start = entry + 8
        if struct.calcsize(layout) > 4:
            [start] = struct.unpack_from(f"{order}I", data, entry + 8)
        yield tag, struct.unpack_from(layout, data, start)


def _refusals(page: TiffPage, bits: tuple[int, ...]) -> Iterator[tuple[bool, str]]:
    """Whether the page is of a kind that is not accepted, and the kind."""
    photometric, compression, samples = page.photometric, page.compression, page.samples
    yield bool(page.first(SUBFILE, 0) & 1), "whose first page is a thumbnail, as in a camera's raw file"
    named = PHOTOMETRICS.get(photometric, f"colours of kind {photometric}")
    yield photometric not in _SAMPLES, f"of {named}"
    named = COMPRESSIONS.get(compression, f"kind {compression}")
    yield compression not in (NONE, LZW, JPEG, *DEFLATES, PACKBITS), f"of compression {named}"
    colours = _SAMPLES[photometric]
    yield not colours <= samples <= colours + 1, f"of {samples} values a pixel"
    yield page.extra not in (None, IGNORED, PREMULTIPLIED, OPACITY), "with an extra value of unknown meaning"
    yield page.extra is not None and photometric == WHITE_IS_ZERO, "of white as zero with a second value a pixel"
    yield page.extra == PREMULTIPLIED and page.bits == 16, "of 16 bits with premultiplied opacity"
    yield len(bits) not in (1, samples) or len(set(bits)) > 1, "whose values differ in bits"
    depths = {PALETTE: (1, 2, 4, 8), RGB: (8, 16), YCBCR: (8,)}.get(photometric, (1, 2, 4, 8, 16))
    yield page.bits not in depths, f"of {page.bits} bits a value"
    yield page.bits < 8 and samples > 1, f"of {samples} values of {page.bits} bits a pixel"
    yield set(page.tags.get(FORMAT, (1,))) != {1}, "of signed or floating-point values"
    yield page.first(FILL_ORDER, 1) != 1, "with the bits of a byte in reverse order"
    predictors = (1, 2) if page.bits >= 8 and compression != JPEG else (1,)
    yield page.first(PREDICTOR, 1) not in predictors and compression != NONE, "of a predictor that is not supported"
    yield photometric == PALETTE and (samples > 1 or COLOURS not in page.tags), "of a palette without its colours"
    yield photometric == YCBCR and compression != JPEG, "of YCbCr without JPEG"
    unfit = page.bits != 8 or page.planes > 1 or samples not in (1, 3) or photometric == PALETTE
    yield compression == JPEG and unfit, "of JPEG with planes, opacity or other than 8 bits"


def check_blocks(page: TiffPage, size: int) -> None:
    """Raise ImageError unless the strips or tiles cover the image, and are different parts of a file of `size` bytes.

    Neither side of the image may be 0.
    """
    rows, columns = page.block
    if not rows or not columns:
        raise damaged("its strips or tiles are empty")
    down, across = page.grid
    count = down * across
    if count * page.planes > MAX_SEGMENTS:
        raise too_many_segments()
    tables = page.tags.get(JPEG_TABLES, ())
    if max(tables, default=0) > 255:
        raise damaged("its JPEG tables are not bytes")
    if count * page.planes * len(tables) > MAX_TABLES:
        raise unsupported(f"whose JPEG tables and strips or tiles, multiplied, are more than {MAX_TABLES // 2**20} MiB")
    if count * rows * columns > 4 * page.height * page.width + SPARE_PIXELS:
        raise unsupported("of tiles that are far larger than the image")
    if rows * page.row_bytes * page.planes > MAX_BLOCK:
        raise unsupported(f"of strips or tiles of more than {MAX_BLOCK // 2**20} MiB")
    places = page.places
    if len(places) != count * page.planes:
        raise damaged("the strips or tiles of its first page do not cover it")
    if any(offset + length > size for offset, length in places):
        raise damaged("it ends within a strip or tile")
    if sum(length for _, length in places) > size:
        raise damaged("its strips or tiles overlap")


def unsupported(what: str) -> ImageError:
    """The refusal of a file of a kind that is not decoded; `what` stands in the middle of the sentence."""
    return ImageError("unsupported_image_format", f"a TIFF {what} is not supported")
