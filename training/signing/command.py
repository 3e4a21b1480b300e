"""`python -m training sign`: make a pair of keys, and sign model files for services that demand it."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import tyro

from serving.contract.files.names import MODEL, int8_of, signature_of
from serving.contract.model import ModelRefused, open_model
from training.errors import ConfigError
from training.storage import write_atomically


@dataclass(frozen=True, kw_only=True)
class SignConfig:
    """Sign the model files of a run, or one model file; or make the keys for it with --new-key.

    The signature, Ed25519 over the file's bytes, is written beside the file (model.onnx.sig). A service with
    TWINLENS_PUBLIC_KEY refuses a file without one.
    """

    model: tyro.conf.Positional[Path | None] = None
    """A run's folder, or an .onnx file."""
    key: Path | None = None
    """File with the private key, an Ed25519 key in PEM."""
    new_key: Path | None = None
    """File to write a new private key to. The public one is written beside it, in a file whose name ends in .pub."""


def sign(config: SignConfig) -> Path:
    """Sign, and return the folder or file that was signed; or make the keys, and return the public one.

    Raises ConfigError, ModelRefused for a file that the service would refuse anyway, OSError.
    """
    from training.signing import keys  # noqa: PLC0415  a native library, which no other command needs

    if config.new_key is not None:
        if config.model is not None or config.key is not None:
            raise ConfigError("--new-key: expected neither a model nor --key beside it")
        return keys.make(config.new_key)
    if config.model is None or config.key is None:
        raise ConfigError("expected a run's folder or a model file and --key FILE, or --new-key FILE")
    files = _files(config.model)
    private = keys.read(config.key)
    for file in files:
        checked, data = open_model(file, threads=0), file.read_bytes()
        if hashlib.sha256(data).hexdigest() != checked.digest:
            raise ModelRefused(f"{file}: it changed while it was checked")
        signature = private.sign(data)
        write_atomically(signature_of(file), lambda stream: stream.write(signature))  # noqa: B023 (called at once)
    return config.model


def signing_summary(path: Path) -> str:
    """What the command prints at its end."""
    if path.is_dir() or signature_of(path).is_file():
        return "\n".join(f"signed {file}: {signature_of(file).name} is beside it" for file in _files(path))
    return f"private key {path.with_suffix('')}, to be kept secret\npublic key  {path}, for TWINLENS_PUBLIC_KEY"


def _files(path: Path) -> list[Path]:
    """The model files of a run's folder; another path as it is. Raises ConfigError."""
    if not path.is_dir():
        return [path]
    files = [file for file in (path / MODEL, int8_of(path / MODEL)) if file.is_file()]
    if not files:
        raise ConfigError(f"{path}: expected a run's folder with its {MODEL}, or an .onnx file")
    return files
