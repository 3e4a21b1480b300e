"""`python -m training import`: make a folder that training and the service read of one with files of other formats."""

import csv
import shutil
import struct
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from io import StringIO
from pathlib import Path

import tyro
from PIL import Image

from serving.contract.decode import checked_header
from serving.contract.formats.image_header import FILE_EXTENSIONS
from training.conversion.dicom import by_pydicom
from training.conversion.extras import missing
from training.conversion.picture import Picture
from training.conversion.pillow import by_pillow, by_pillow_heif
from training.data.inspection.kinds import KINDS, Kind, kind_of
from training.data.inspection.threads import in_threads
from training.data.sources.source import NAMES_SHOWN, shortened
from training.data.sources.tree import IMPORT_RECORD, Tree, is_image
from training.errors import ConfigError, DataError
from training.storage import digest, write_atomically

COLUMNS = ("source", "sha256", "output", "done", "frame", "depth", "window")
CONVERTERS: dict[Kind, Callable[[Path], Picture]] = {
    "pillow": by_pillow,
    "heic": by_pillow_heif,
    "dicom": by_pydicom,
}
FAULTS = (
    *(OSError, ValueError, SyntaxError, RuntimeError, NotImplementedError, EOFError, struct.error),
    *(AttributeError, LookupError, TypeError, ArithmeticError, Image.DecompressionBombError),
)
"""What the libraries raise of damaged files."""


@dataclass(frozen=True, kw_only=True)
class ImportConfig:
    """Copy a folder of images so that training reads all of it: other formats become PNG files of 8 bits.

    Those are AVIF, JPEG 2000, HEIC, DICOM, more kinds of TIFF, and the first frames of animations. What training reads
    by itself is copied as it is, what is no image is left out. import.csv says what was done with each file.
    """

    source: tyro.conf.Positional[Path]
    """Folder with images; its folders are kept."""
    out: Path
    """Folder for the copy. It must be empty, or not exist yet."""


@dataclass(frozen=True, kw_only=True)
class ImportRow:
    """What was done with one file: a row of import.csv."""

    source: str
    sha256: str
    output: str
    done: str
    picture: Picture | None = None


def import_images(config: ImportConfig) -> Path:
    """Convert and copy, and return the new folder.

    Raises ConfigError for a folder that is not empty or an extra that is missing, DataError where no image can be read,
    OSError.
    """
    if not config.source.is_dir():
        raise ConfigError(f"{config.source}: expected a folder")
    if config.out.exists() and (not config.out.is_dir() or any(config.out.iterdir())):
        raise ConfigError(f"--out {config.out}: expected an empty folder, or one that does not exist yet")
    tree = Tree(config.source, [config.out])
    paths = list(tree.files(config.source, deep=True))
    inspected = list(in_threads(lambda index: _kind(paths[index]), range(len(paths)), "look"))
    kinds = {kind for kind, _ in inspected}
    if sentences := missing(kinds):
        raise ConfigError("\n".join(sentences))
    outputs = _outputs(config, paths, [kind for kind, _ in inspected])

    def convert(index: int) -> ImportRow:
        kind, reason = inspected[index]
        return _row(config, paths[index], outputs[index], kind, reason)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of values that break a standard, which most archives have
        rows = list(in_threads(convert, range(len(paths)), "convert"))
    if not any(row.output for row in rows):
        raise DataError(f"{config.source}: no file is an image that can be read{_shown(rows)}")
    write_atomically(
        config.out / IMPORT_RECORD, lambda file: file.write(_table(rows).encode("utf-8", "surrogateescape"))
    )
    for note in tree.notes():
        print(f"note: {note}")
    return config.out


def import_summary(folder: Path) -> str:
    """What the command prints at its end."""
    with (folder / IMPORT_RECORD).open(newline="", encoding="utf-8", errors="surrogateescape") as file:
        rows = list(csv.DictReader(file))
    counts = Counter(row["done"].partition(":")[0] for row in rows)
    lines = [f"{counts[done]:,} {done}" for done in sorted(counts)]
    reasons = {row["source"]: row["done"].partition(": ")[2] for row in rows}
    refused = [f"  {source}: {reason}" for source, reason in reasons.items() if reason]
    tables = [row["source"] for row in rows if not row["output"] and row["source"].lower().endswith(".csv")]
    note = (
        f"note: CSV files are left out: {shortened(tables)}. The paths of a manifest have to become those of the "
        f"copies, which {IMPORT_RECORD} has in its column output."
    )
    shown = [*refused[:NAMES_SHOWN], *([note] if tables else [])]
    return "\n".join([", ".join(lines), *shown, f"images  {folder}", f"record  {folder / IMPORT_RECORD}"])


def _kind(path: Path) -> tuple[Kind, str]:
    """As `kind_of`; a file that may not be read, or a link that leads nowhere, costs no other file."""
    try:
        return kind_of(path)
    except (FileNotFoundError, PermissionError) as error:
        return "damaged", str(error.strerror)


def _outputs(config: ImportConfig, paths: Sequence[Path], kinds: Sequence[Kind]) -> list[Path]:
    """A place for each file. Raises DataError where two have the same."""
    places = []
    for path, kind in zip(paths, kinds, strict=True):
        place = config.out / path.relative_to(config.source)
        ending = ".png" if kind in CONVERTERS else "" if kind != "read" or is_image(path) else _ending(path)
        places.append(place.with_name(f"{place.name}{ending}"))
    twice = [str(place) for place, count in Counter(places).items() if count > 1]
    if twice:
        raise DataError(f"two files would have one name: {', '.join(twice[:NAMES_SHOWN])}")
    return places


def _ending(path: Path) -> str:
    """That by which training knows an image of this format, for a file of another name."""
    return FILE_EXTENSIONS[checked_header(path.read_bytes()).format][0]


def _row(config: ImportConfig, path: Path, output: Path, kind: Kind, reason: str) -> ImportRow:
    assert kind in KINDS
    name = str(path.relative_to(config.source))
    try:
        sha256 = digest(path)
    except (FileNotFoundError, PermissionError) as error:
        return ImportRow(source=name, sha256="", output="", done=f"refused: {error.strerror}")
    if kind == "other":
        return ImportRow(source=name, sha256=sha256, output="", done="left out, no image")
    picture = None
    try:
        if kind == "damaged":
            raise ValueError(reason)
        picture = CONVERTERS[kind](path) if kind in CONVERTERS else None
    except FAULTS as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        return ImportRow(source=name, sha256=sha256, output="", done=f"refused: {reason}")
    output.parent.mkdir(parents=True, exist_ok=True)
    if picture is None:
        shutil.copyfile(path, output)
    else:
        picture.image.save(output, "PNG")
    done = "copied" if picture is None else "converted"
    return ImportRow(source=name, sha256=sha256, output=str(output.relative_to(config.out)), done=done, picture=picture)


def _table(rows: Sequence[ImportRow]) -> str:
    text = StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(COLUMNS)
    for row in rows:
        picture = row.picture
        details = (picture.frame, picture.depth, picture.window) if picture else ("", "", "")
        writer.writerow([row.source, row.sha256, row.output, row.done, *details])
    return text.getvalue()


def _shown(rows: Sequence[ImportRow]) -> str:
    return "".join(f"\n  {row.source}: {row.done}" for row in rows[:NAMES_SHOWN])
