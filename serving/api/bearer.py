"""The optional bearer token (RFC 6750): a file of accepted tokens, one a line, so that old and new ones can overlap."""

import hashlib
import hmac
import logging
from pathlib import Path

log = logging.getLogger("bentoml.twinlens")


class BearerTokens:
    """The tokens in a file; it is read again when it changes, at the next request."""

    def __init__(self, path: Path) -> None:
        """Raises ValueError naming the file when it cannot be read or holds no token."""
        self._path = path
        self._stamp = self._stamp_now()
        self._digests = _read(path)

    def accept(self, authorization: str | None) -> bool:
        """Whether an Authorization header holds one of the tokens; the comparison takes the same time for any token."""
        self._refresh()
        scheme, _, token = (authorization or "").partition(" ")
        digest = hashlib.sha256(token.strip().encode()).digest()
        equal = [hmac.compare_digest(digest, known) for known in self._digests]
        return scheme.lower() == "bearer" and any(equal)

    def _refresh(self) -> None:
        stamp = self._stamp_now()
        if stamp == self._stamp:
            return
        self._stamp = stamp
        try:
            self._digests = _read(self._path)
        except ValueError as error:
            log.error("%s; the previous tokens stay valid", error)

    def _stamp_now(self) -> tuple[int, int, int] | None:
        try:
            status = self._path.stat()
        except OSError:
            return None
        return status.st_ino, status.st_mtime_ns, status.st_size


def _read(path: Path) -> list[bytes]:
    try:
        lines = path.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"TWINLENS_TOKEN_FILE={str(path)!r}: cannot be read ({error})") from error
    tokens = [line.strip() for line in lines if line.strip()]
    for number, line in enumerate(lines, 1):
        if len(line.split()) > 1:  # a comment would be tokens
            raise ValueError(f"TWINLENS_TOKEN_FILE={str(path)!r}: line {number} has a blank; write one token a line")
    if not tokens:
        raise ValueError(f"TWINLENS_TOKEN_FILE={str(path)!r}: the file holds no token; write one a line")
    return [hashlib.sha256(token.encode()).digest() for token in tokens]
