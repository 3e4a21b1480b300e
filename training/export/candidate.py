"""Commit a model file: write it under a hidden name, prove it, and only then give it its own name."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from torch import nn
from torch.onnx import OnnxExporterError

from serving.contract.card.model_card import ModelCard
from serving.contract.files.names import neighbours_of
from serving.contract.model import ModelRefused
from serving.contract.neighbours.file import to_bytes
from serving.contract.session import RUNTIME_ERRORS, lacks_memory
from training.data.dataset import Dataset
from training.errors import ExportRefused
from training.export.onnx import serialize
from training.export.parity import ExpectedOutputs, Parity, prove
from training.storage import sync, write_atomically


def export(model: nn.Sequential, card: ModelCard, dataset: Dataset, evaluated: ExpectedOutputs, path: Path) -> Parity:
    """Write `model` and its card to `path`; return the proof that the file answers what was `evaluated` in the test.

    The index of the training images, if there is one, is left beside it. Raises ExportRefused, and then leaves nothing
    at `path`, when the service's loader refuses the file or the proof does not hold. Raises OSError.
    """
    with refusals():
        content = serialize(model, card, evaluated.detector)
    with candidate(path, content) as file:
        parity = prove(model, file, dataset, evaluated)
        if (index := evaluated.index) is not None:
            write_atomically(neighbours_of(path), lambda stream: stream.write(to_bytes(index)))
        commit(file, path)
    return parity


@contextmanager
def candidate(path: Path, content: bytes) -> Iterator[Path]:
    """A hidden file beside `path` with this content; what is not committed inside the `with` is removed.

    Turns refusals inside the `with` into ExportRefused, as `refusals` does.
    """
    file = path.with_name(f".{path.name}.candidate")
    try:
        write_atomically(file, lambda stream: stream.write(content))
        with refusals():
            yield file
    finally:
        file.unlink(missing_ok=True)


@contextmanager
def refusals() -> Iterator[None]:
    """Turns ModelRefused and what exporter and ONNX Runtime raise into ExportRefused.

    Too little memory becomes MemoryError.
    """
    try:
        yield
    except OnnxExporterError as error:
        raise ExportRefused(f"the model cannot be exported to ONNX: {error}") from error
    except ModelRefused as error:
        raise ExportRefused(f"the service would refuse the file: {error}") from error
    except RUNTIME_ERRORS as error:
        if lacks_memory(error):  # of which the file is not the reason
            raise MemoryError(f"too little memory to run the file ({error})") from error
        raise ExportRefused(f"ONNX Runtime cannot run the file: {error}") from error


def commit(file: Path, path: Path) -> None:
    """Rename a candidate to its own name, in one step that outlasts a power failure."""
    file.replace(path)
    sync(path.parent)
