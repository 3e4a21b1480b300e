"""Ed25519 keys in files: made, read and used to sign."""

import os
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)

from training.errors import ConfigError
from training.storage import sync

PUBLIC = ".pub"
"""Ends the name of a public key's file."""


def make(path: Path) -> Path:
    """Write a new private key to `path`, readable by its owner alone, and the public one beside it; return the latter.

    Both are PEM. Raises ConfigError where one of the files is there, OSError.
    """
    public = path.with_name(path.name + PUBLIC)
    for file in (path, public):
        if file.exists():
            raise ConfigError(f"--new-key {path}: {file} is there and would be written over; give another name")
    key = Ed25519PrivateKey.generate()
    _write(path, key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()), 0o600)
    _write(public, key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo), 0o644)
    sync(path.parent)
    return public


def read(path: Path) -> Ed25519PrivateKey:
    """Read a private key in PEM. Raises ConfigError."""
    expected = "expected an Ed25519 private key in PEM, without a password; --new-key makes one"
    try:
        key = load_pem_private_key(path.read_bytes(), password=None)
    except OSError as error:
        raise ConfigError(f"--key {path}: cannot be read ({error.strerror}); {expected}") from error
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise ConfigError(f"--key {path}: no such key; {expected}") from error
    if not isinstance(key, Ed25519PrivateKey):
        raise ConfigError(f"--key {path}: a key of another kind; {expected}")
    return key


def _write(path: Path, content: bytes, mode: int) -> None:
    """Write a file that is not there yet; from its first byte on, it has this mode."""
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:  # noqa: PTH123 (a descriptor)
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
