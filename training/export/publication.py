"""Publish a model file: write it under a hidden name, prove it, and only then give it its own name."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from torch import nn

from serving.contract.card import ModelCard
from serving.contract.model import ModelRefused
from training.data.dataset import Dataset
from training.errors import ExportRefused
from training.export.onnx import serialize
from training.export.parity import Parity, prove
from training.storage import sync, write_atomically


def export(model: nn.Sequential, card: ModelCard, dataset: Dataset, path: Path) -> Parity:
    """Write `model` and its card to `path` and return the proof on the test split.

    Raises ExportRefused, and then leaves nothing at `path`, when the service's loader refuses the file or the proof
    does not hold. Raises OSError.
    """
    with candidate(path, serialize(model, card)) as file:
        parity = prove(model, file, dataset)
        publish(file, path)
    return parity


@contextmanager
def candidate(path: Path, content: bytes) -> Iterator[Path]:
    """A hidden file beside `path` with this content; what is not published inside the `with` is removed.

    Turns ModelRefused inside the `with` into ExportRefused.
    """
    file = path.with_name(f".{path.name}.candidate")
    try:
        write_atomically(file, lambda stream: stream.write(content))
        yield file
    except ModelRefused as error:
        raise ExportRefused(f"the service would refuse the file: {error}") from error
    finally:
        file.unlink(missing_ok=True)


def publish(file: Path, path: Path) -> None:
    """Rename a candidate to its own name, in one step that outlasts a power failure."""
    file.replace(path)
    sync(path.parent)
