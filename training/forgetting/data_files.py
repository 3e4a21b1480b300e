"""The images themselves: files in the data, and their rows in manifests and in files of corrected labels."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from serving.contract.objects import Location
from training.engine import runs
from training.errors import ConfigError
from training.forgetting.dependents import Dependent
from training.forgetting.names import Names
from training.forgetting.person import Person
from training.forgetting.texts import without_names
from training.storage import write_atomically


@dataclass(frozen=True, kw_only=True)
class DataFiles:
    """Files of the data that are the person's, or have lines on them."""

    data: Location | None
    names: Names
    images: tuple[Path, ...]
    tables: tuple[Path, ...]
    """CSV files with rows on the images."""
    present: int

    @classmethod
    def of(cls, data: Location | None, person: Person, dependents: list[Dependent]) -> "DataFiles":
        """Those of the data, and the --corrections of runs that had the images. Raises ConfigError, OSError."""
        tables: list[Path | None] = [data] if isinstance(data, Path) and data.suffix.lower() == ".csv" else []
        for one in dependents:
            try:
                tables.append(runs.load_config(one.run).corrections)
            except ConfigError:  # a run of another version
                continue
        names = person.names
        return cls(
            data=data,
            names=names,
            images=tuple(person.root / key for key in person.present) if person.root else (),
            tables=tuple(dict.fromkeys(path for path in tables if path and path.is_file() and _rows(path, names))),
            present=len(person.present),
        )

    @property
    def are_files(self) -> bool:
        """Whether each image is a file of its own, which can be deleted here."""
        return bool(self.images)

    def check(self) -> None:
        """Raise ConfigError where the images are in no files of their own."""
        if self.present and not self.are_files:
            raise ConfigError(
                f"--delete-images: {self.data or 'the digits'}: the images are no files of their own, so who keeps it "
                "deletes them there; without this option all that reads it leaves them out"
            )

    def listed(self) -> Iterator[tuple[Path, str]]:
        """Each place and what is there of the person."""
        if self.images and self.data is not None:
            yield Path(str(self.data)), f"{len(self.images):,} images"
        for path in self.tables:
            yield path, f"{_rows(path, self.names):,} rows"

    def delete(self) -> None:
        """Delete the images and the rows. Raises OSError."""
        for path in self.tables:  # before the files: a manifest of files that do not exist is refused
            content = without_names(path.suffix, _text(path), self.names)[0].encode(errors="surrogateescape")
            write_atomically(path, lambda file, content=content: file.write(content))  # type: ignore[misc]
        for path in self.images:
            path.unlink(missing_ok=True)


def _text(path: Path) -> str:
    return path.read_bytes().decode(errors="surrogateescape")


def _rows(path: Path, names: Names) -> int:
    return without_names(path.suffix, _text(path), names)[1].total()
