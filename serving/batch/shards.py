"""The part of the images that one of several processes, on any machines, predicts; and the table of all parts."""

import hashlib
import re
import shutil
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from serving.batch.parts import is_complete, write_table


@dataclass(frozen=True)
class Shard:
    """The `number`-th of `count` shards, from 1 on. The whole is shard 1 of 1."""

    number: int = 1
    count: int = 1

    @classmethod
    def parse(cls, text: str) -> "Shard":
        """A shard written as i/n, such as 2/8. Raises ValueError."""
        if not (match := re.fullmatch(r"(\d+)/(\d+)", text)) or not 1 <= int(match[1]) <= int(match[2]):
            raise ValueError(f"expected i/n with i from 1 to n, such as 2/8, got {text}")
        return cls(int(match[1]), int(match[2]))

    def has(self, path: str) -> bool:
        """Whether an image is of this shard: by the digest of its path, since folders have no order on some disks."""
        digest = hashlib.blake2b(path.encode("utf-8", "surrogateescape"), digest_size=8, person=b"shard").digest()
        return int.from_bytes(digest, "little") % self.count == self.number - 1

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"


@dataclass(frozen=True)
class SharedTable:
    """A table whose rows several shards make. `identity` keeps the rows of other models and sources out."""

    out: Path
    columns: Sequence[str]
    identity: str

    def folder(self, shard: Shard) -> Path:
        """Where the parts of a shard are kept, beside the table, until it is written."""
        return self.out.with_name(f".{self.out.name}.{self.identity}.{shard.number}-of-{shard.count}.parts")

    def missing(self, count: int) -> list[Shard]:
        """Those of `count` shards that are not complete; none when the table is written."""
        shards = [Shard(number, count) for number in range(1, count + 1)]
        unfinished = [shard for shard in shards if not is_complete(self.folder(shard))]
        return [] if self.out.exists() else unfinished

    def write(self, count: int) -> None:
        """Write the table from complete shards, and remove these. `out` appears complete. Raises OSError.

        Two shards that end at the same moment both do this, with the same result.
        """
        folders = [self.folder(Shard(number, count)) for number in range(1, count + 1)]
        candidate = self.out.with_name(f".{self.out.stem}.{uuid.uuid4().hex}{self.out.suffix}")
        try:
            write_table(candidate, self.columns, folders)
            candidate.replace(self.out)
        except FileNotFoundError:
            if not self.out.exists():
                raise
        finally:
            candidate.unlink(missing_ok=True)
        for folder in folders:
            shutil.rmtree(folder, ignore_errors=True)
