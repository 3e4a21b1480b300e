"""Files that are no text, without what they hold of a person: TensorBoard's events, and the index of training images.

Records of events are taken out whole, so that the checksums of the others stay right. Rows of an index leave their
SHA-256, so that the digest in the card of the model stays right.
"""

import struct
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from tensorboard.compat.proto.event_pb2 import Event

from serving.contract.neighbours.file import NeighboursRefused, from_bytes, to_bytes
from training.data.sources.source import Split
from training.forgetting.names import Names
from training.forgetting.person import Person
from training.forgetting.texts import Counts

SHEETS: dict[str, Split] = {"train/augmented": "train", "val/examples": "val", "val/worst_mistakes": "val"}
"""By tag of a picture that shows images: the split that they are of."""
_LENGTH = struct.Struct("<Q")
_CHECKSUM = 4


def without_pictures(content: bytes, splits: frozenset[Split]) -> tuple[bytes, Counts]:
    """TensorBoard's file of a run without the pictures of images of these splits, and how many they were."""
    kept, counts = list[bytes](), Counter[str]()
    for record, body in _records(content):
        if any(SHEETS.get(tag) in splits for tag in _tags(body)):
            counts["pictures"] += 1
        else:
            kept.append(record)
    return b"".join(kept), counts


def without_rows(content: bytes, path: Path, names: Names, person: Person) -> tuple[bytes | None, Counts]:
    """An index without the rows of these names or of the person's pixels, and how many they were.

    None in its place: the file is no index that this version reads.
    """
    try:
        index = from_bytes(content, path)
    except NeighboursRefused:
        return None, Counts(names=int(content.decode(errors="surrogateescape") in names))
    theirs = np.array([key in names.exact for key in index.paths], bool)
    digests = [pixels.tobytes().hex() in person.digests for pixels in index.pixels]
    removed = theirs | np.array(digests, bool)
    return to_bytes(index.without(removed)) if removed.any() else content, Counts(rows=int(removed.sum()))


def _records(content: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Each record as it is, and the message in it; the last may be cut off."""
    start, header = 0, _LENGTH.size + _CHECKSUM
    while start < len(content):
        length = _LENGTH.unpack_from(content, start)[0] if start + header <= len(content) else 0
        end = start + header + length + _CHECKSUM
        yield content[start:end], content[start + header : end - _CHECKSUM]
        start = end


def _tags(body: bytes) -> list[str]:
    try:
        return [value.tag for value in Event.FromString(body).summary.value if value.HasField("image")]
    except DecodeError:
        return []
