"""Names of a run's model files, and of the files beside a model file that belong to it."""

from pathlib import Path

MODEL = "model.onnx"
INT8 = ".int8.onnx"
"""End of the name of the file in eight bits beside a model file."""
NEIGHBOURS = ".neighbours.npz"
"""End of the name of the index of training images."""
SIGNATURE = ".sig"


def int8_of(model: Path) -> Path:
    """Where the same model in eight bits is: `model.int8.onnx` beside `model.onnx`."""
    return model.with_suffix(INT8)


def neighbours_of(model: Path) -> Path:
    """Where the index of a model file is: `model.neighbours.npz` beside `model.onnx`."""
    return model.with_suffix(NEIGHBOURS)


def signature_of(file: Path) -> Path:
    """Where the signature of a model file is: `model.onnx.sig` beside `model.onnx`."""
    return file.with_name(file.name + SIGNATURE)


def files_of(run: Path) -> list[Path]:
    """All that a service may read of a run's folder, each file after those that belong to it; some may not exist."""
    model = run / MODEL
    int8 = int8_of(model)
    return [signature_of(int8), int8, signature_of(model), neighbours_of(model), model]
