"""TensorBoard's file of a run without the pictures that may show a person's images.

Records are taken out whole, so that the checksums of the others stay right.
"""

import struct
from collections import Counter
from collections.abc import Iterator

from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from tensorboard.compat.proto.event_pb2 import Event

from training.data.sources.source import Split
from training.forgetting.texts import Counts

SHEETS: dict[str, Split] = {"train/augmented": "train", "val/examples": "val", "val/worst_mistakes": "val"}
"""By tag of a picture that shows images: the split that they are of."""
_LENGTH = struct.Struct("<Q")
_CHECKSUM = 4


def without(content: bytes, splits: frozenset[Split]) -> tuple[bytes, Counts]:
    """The file without the pictures of images of these splits, and how many they were."""
    kept, counts = list[bytes](), Counter[str]()
    for record, body in _records(content):
        if any(SHEETS.get(tag) in splits for tag in _tags(body)):
            counts["pictures"] += 1
        else:
            kept.append(record)
    return b"".join(kept), counts


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
