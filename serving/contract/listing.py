"""What both sides take for an image when they list a folder or read a CSV manifest, so that they list the same ones."""

import csv
import errno
import re
import unicodedata
from collections.abc import Iterator
from pathlib import Path

HIDDEN_FOLDERS = {
    *("__macosx", "__pycache__", "@eadir", "@recycle", "@recently-snapshot", "@sharebin", "@tmp"),
    *("#recycle", "#snapshot", "$recycle.bin", "system volume information", "lost+found"),
}
"""Folders of archives, network storage and systems, in lower case; names that begin with a dot are hidden, too."""
_ZERO_WIDTH = "\u200b\u2060\ufeff"
_CONTROL = re.compile(r"[\s\x00-\x1f\x7f-\x9f]*[\n\r\x00-\x1f\x7f-\x9f\u2028\u2029][\s\x00-\x1f\x7f-\x9f]*")
_SEPARATORS = {";": "semicolons", "\t": "tabs"}
"""What Excel writes instead of commas in languages whose decimals have them."""
_UNDECODED = re.compile("[\udc80-\udcff]")
"""What Python makes of bytes that are not UTF-8 where errors are `surrogateescape`."""


class ManifestError(ValueError):
    """A CSV file that is no manifest; the message names the file, the line and what is there."""


def is_hidden(name: str) -> bool:
    """Whether a file or folder of this name was left by a tool and is no data."""
    return name.startswith(".") or name.lower() in HIDDEN_FOLDERS


def clean(text: str) -> str:
    """The text in Unicode's form NFC, without blanks around it; a line end or control character is one blank."""
    return _CONTROL.sub(" ", unicodedata.normalize("NFC", text)).strip().strip(_ZERO_WIDTH).strip()


def on_disk(root: Path, path: str) -> str:
    """`path` as the file below `root` is spelt: as written, without blanks around it, or in Unicode's other form.

    Where there is no such file, `path` without blanks around it.
    """
    stripped = path.strip()
    forms = (path, stripped, *(unicodedata.normalize(form, stripped) for form in ("NFC", "NFD")))
    return next((form for form in dict.fromkeys(forms) if is_file(root / form)), stripped)


def is_file(path: Path) -> bool:
    """Whether there is such a file; not for a text that is longer than a name may be."""
    try:
        return path.is_file()
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:
            raise
        return False


def read_manifest(
    path: Path, required: tuple[str, ...], errors: str = "strict"
) -> Iterator[tuple[int, dict[str, str]]]:
    """The rows of a CSV file in UTF-8, one at a time: the number of the line, and the values by column.

    Names of columns are in lower case and `clean`; values are as written. Lines without a value are left out. Raises
    ManifestError: a row of more or fewer values than the header, a value with a line end (mostly a quote that is not
    closed), a column twice, a column of `required` that is missing, other bytes than UTF-8 (with `errors` of strict).
    """
    with path.open(newline="", encoding="utf-8-sig", errors="surrogateescape") as file:
        reader = csv.reader(file, strict=True)
        columns: list[str] = []
        try:
            for row in reader:
                if not any(value.strip() for value in row):  # Excel ends a table with lines of commas
                    continue
                if errors == "strict" and (broken := [value for value in row if _UNDECODED.search(value)]):
                    raise ManifestError(f"{path}: line {reader.line_num}: not in UTF-8\n  {broken[0][:200]!r}")
                if not columns:
                    columns = _columns(path, row, required)
                    continue
                _check(path, reader.line_num, row, len(columns))
                yield reader.line_num, dict(zip(columns, row, strict=True))
        except csv.Error as error:
            raise ManifestError(f"{path}: line {reader.line_num}: not a CSV file ({error})") from error
    if not columns:
        raise ManifestError(f"{path}: the manifest has no rows")


def _columns(path: Path, row: list[str], required: tuple[str, ...]) -> list[str]:
    columns = [clean(name).lower() for name in row]
    if missing := [name for name in required if name not in columns]:
        if others := [plural for mark, plural in _SEPARATORS.items() if any(mark in name for name in row)]:
            raise ManifestError(f"{path}: expected commas between the values, got {others[0]} in {','.join(row)!r}")
        raise ManifestError(f"{path}: no column {' and '.join(missing)}; there are {', '.join(columns)}")
    if twice := sorted({name for name in columns if name and columns.count(name) > 1}):
        raise ManifestError(f"{path}: more than one column {', '.join(twice)}; there are {', '.join(map(repr, row))}")
    return columns


def _check(path: Path, line: int, row: list[str], expected: int) -> None:
    if len(row) != expected:
        hint = "; a value that holds a comma needs quotes around it" if len(row) > expected else ""
        raise ManifestError(
            f"{path}: line {line}: expected {expected} values, as in the header, got {len(row)}{hint}\n  {row}"
        )
    if broken := [value for value in row if "\n" in value or "\r" in value]:
        raise ManifestError(
            f"{path}: line {line}: a value holds a line end; is a quote not closed?\n  {broken[0][:200]!r}"
        )
