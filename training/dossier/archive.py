"""An archive that is the same to the last byte whenever it is made of the same files."""

import hashlib
import zipfile
from collections.abc import Mapping
from typing import BinaryIO

SUMS = "SHA256SUMS"
BEGINNING = (1980, 1, 1, 0, 0, 0)
"""The first time that a zip file can state, for every file in it."""


def write_archive(files: Mapping[str, bytes], target: BinaryIO) -> None:
    """Write the files by their names, in order, and SUMS, their SHA-256 in the format of `sha256sum`.

    They are stored and not compressed: another version of zlib would make other bytes.
    """
    sums = "".join(f"{hashlib.sha256(files[name]).hexdigest()}  {name}\n" for name in sorted(files))
    with zipfile.ZipFile(target, "w", zipfile.ZIP_STORED) as archive:
        for name, content in sorted({**files, SUMS: sums.encode()}.items()):
            entry = zipfile.ZipInfo(name, BEGINNING)
            entry.create_system = 3  # Unix, on every system
            entry.external_attr = 0o644 << 16
            archive.writestr(entry, content)
