"""Detached signatures of model files: Ed25519 over a file's bytes, in a file of 64 bytes beside it.

They are what `openssl pkeyutl -sign -rawin` makes and `-verify` checks, so nobody needs this program to verify one.
"""

from dataclasses import dataclass
from pathlib import Path

from serving.contract.files.names import signature_of

LENGTH = 64
"""Bytes of an Ed25519 signature (RFC 8032)."""
EXPECTED_KEY = "an Ed25519 public key in PEM, or the path of its file"


class SignatureRefused(ValueError):
    """A key that is no public key, or a signature that does not hold; the message says what was expected."""


@dataclass(frozen=True)
class PublicKey:
    """An Ed25519 public key: the files that its owner has signed are trusted."""

    raw: bytes
    """Its 32 bytes."""

    @classmethod
    def read(cls, text: str) -> "PublicKey":
        """The key in `text`: PEM, or the path of a PEM file.

        Raises SignatureRefused, whose message never holds the text: it may be a private key, given by mistake.
        """
        # 8 ms and a native library, which only those need who sign or verify.
        from cryptography.exceptions import UnsupportedAlgorithm  # noqa: PLC0415
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey  # noqa: PLC0415
        from cryptography.hazmat.primitives.serialization import load_pem_public_key  # noqa: PLC0415

        is_pem = "-----BEGIN" in text
        where = "the PEM given" if is_pem else text
        try:
            key = load_pem_public_key(text.encode() if is_pem else Path(text).read_bytes())
        except OSError as error:
            raise SignatureRefused(f"{where}: cannot be read ({error.strerror}); expected {EXPECTED_KEY}") from error
        except (ValueError, UnsupportedAlgorithm) as error:
            raise SignatureRefused(f"{where}: no public key; expected {EXPECTED_KEY}") from error
        if not isinstance(key, Ed25519PublicKey):
            raise SignatureRefused(f"{where}: a public key of another kind; expected {EXPECTED_KEY}")
        return cls(key.public_bytes_raw())

    def check(self, data: bytes, file: Path) -> None:
        """Raise SignatureRefused unless the signature beside `file` is one of `data` by this key's owner."""
        from cryptography.exceptions import InvalidSignature  # noqa: PLC0415
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey  # noqa: PLC0415

        signature = _read(signature_of(file))
        try:
            Ed25519PublicKey.from_public_bytes(self.raw).verify(signature, data)
        except InvalidSignature as error:
            raise SignatureRefused(
                f"{signature_of(file).name} does not fit: the file was changed, or another key signed it"
            ) from error


def _read(path: Path) -> bytes:
    """Raises SignatureRefused."""
    try:
        with path.open("rb") as file:
            signature = file.read(LENGTH + 1)
    except OSError as error:
        raise SignatureRefused(
            f"no signature: {path.name} beside it cannot be read ({error.strerror}); `python -m training sign` makes it"
        ) from error
    if len(signature) != LENGTH:
        length = "more" if len(signature) > LENGTH else len(signature)
        raise SignatureRefused(f"no signature: expected {LENGTH} bytes in {path.name} beside it, found {length}")
    return signature
