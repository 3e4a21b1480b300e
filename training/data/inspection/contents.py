"""What the files hold: every one is read once, for its facts, its fingerprint and its pixels."""

from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile

import numpy as np
from pydantic import TypeAdapter

from serving.contract.decode import decode
from serving.contract.formats.depth import SHIFTED
from serving.contract.formats.image_header import ImageError
from training.data import duplicates
from training.data.cache import Cache
from training.data.duplicates import FINGERPRINT, Duplicates
from training.data.input import depth as depths
from training.data.input.sizing import Size
from training.data.inspection.image_file import UNREADABLE, ImageFile, Raw, read_image
from training.data.inspection.kinds import can_be_imported
from training.data.inspection.pixel_file import PixelFile
from training.data.inspection.threads import in_threads
from training.data.sources.source import Source

CONTENTS = "contents"
"""Kind of their entry in the cache."""
IMPORT = "; `python -m training import` converts it"
"""End of the reason why an image cannot be read, where the import makes it readable."""


@dataclass(frozen=True, kw_only=True)
class Contents:
    """What the files hold. It does not depend on labels and splits."""

    files: list[ImageFile]
    """The readable images, in the order of the source."""
    unreadable: dict[int, str]
    """Position in the source of each image that cannot be read, and the reason."""
    duplicates: Duplicates
    """Pairs of readable images, counted as in `files`."""

    @property
    def positions(self) -> list[int]:
        """Position in the source of each readable image."""
        count = len(self.files) + len(self.unreadable)
        return [position for position in range(count) if position not in self.unreadable]

    @property
    def sizes(self) -> list[Size]:
        """Height and width of each readable image."""
        return [(file.height, file.width) for file in self.files]


def inspect_files(source: Source, cache: Cache) -> Contents:
    """Return what the files hold, from the cache or by reading all of them."""
    return cache.value(CONTENTS, source.identity, TypeAdapter(Contents), lambda: read_all(source, scratch=cache.folder))


def read_all(source: Source, pixel_file: PixelFile | None = None, scratch: Path | None = None) -> Contents:
    """Read every image once. The row of image i in `pixel_file`, where there is one, is its position in the source.

    What is needed meanwhile is in a file in the folder `scratch`, by default one of the system.
    """

    def inspect_image(position: int) -> tuple[ImageFile, np.ndarray] | str:
        raw: Raw = b""
        try:
            raw = source.read(position)
            file, pixels = read_image(raw, pixel_file.depth if pixel_file else SHIFTED)
        except UNREADABLE as error:
            importable = isinstance(error, ImageError) and isinstance(raw, bytes) and can_be_imported(raw, error)
            return f"{error}{IMPORT if importable else ''}"
        if pixel_file is not None:
            pixel_file.write(position, pixels)
        if isinstance(raw, bytes) and file.bits > 8:  # copies are found whatever depth is chosen later
            pixels = decode(raw, depth=depths.spread(depths.counts(raw)))
        return file, duplicates.fingerprint(pixels)

    files: list[ImageFile] = []
    unreadable: dict[int, str] = {}
    # The fingerprints of a million images would take 4 GiB of memory.
    with TemporaryFile(dir=scratch) as file_of_fingerprints:
        for position, result in enumerate(in_threads(inspect_image, range(len(source.keys)), "read")):
            if isinstance(result, str):
                unreadable[position] = result
            else:
                file, fingerprint = result
                files.append(file)
                file_of_fingerprints.write(fingerprint.tobytes())
        file_of_fingerprints.flush()
        fingerprints = np.memmap(file_of_fingerprints, FINGERPRINT, "r") if files else np.empty(0, FINGERPRINT)
        pairs = duplicates.find(fingerprints, [file.digest for file in files])
    return Contents(files=files, unreadable=unreadable, duplicates=pairs)
