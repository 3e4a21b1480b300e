"""The optional bearer token (RFC 6750): a file of accepted tokens, one a line, so that old and new ones can overlap."""

import hashlib
import hmac
import logging
from pathlib import Path

log = logging.getLogger("bentoml.twinlens")


class BearerTokens:
    """The tokens in a file; it is read again when it changes, at the next request.

    After a change, what the file holds is what counts: an emptied file leaves no valid token, a malformed line is no
    token. Only while the file is missing, as a mount is that is being replaced, or cannot be read, the previous tokens
    stay valid.
    """

    def __init__(self, path: Path) -> None:
        """Raises ValueError naming the file when it cannot be read or holds no token."""
        self._path = path
        self._stamp = self._stamp_now()
        self._digests, faults = _read(path)
        if faults:
            raise ValueError(faults[0])

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
            self._digests, faults = _read(self._path)
        except ValueError as error:
            log.error("%s; the previous tokens stay valid", error)
            return
        for fault in faults:
            log.error("%s; %d tokens are valid", fault, len(self._digests))

    def _stamp_now(self) -> tuple[int, int, int] | None:
        try:
            status = self._path.stat()
        except OSError:
            return None
        return status.st_ino, status.st_mtime_ns, status.st_size


def _read(path: Path) -> tuple[list[bytes], list[str]]:
    """The digests of the tokens, and what is wrong with the file. Raises ValueError when it cannot be read."""
    where = f"TWINLENS_TOKEN_FILE={str(path)!r}"
    try:
        lines = [line.strip() for line in path.read_bytes().splitlines()]
    except OSError as error:
        raise ValueError(f"{where}: cannot be read ({error})") from error
    # A comment would be tokens, and a byte that is not ASCII cannot be sent.
    tokens = [line for line in lines if line.isascii() and len(line.split()) == 1]
    faults = [
        f"{where}: line {number} has a blank or is not ASCII; write one token a line"
        for number, line in enumerate(lines, 1)
        if line and line not in tokens
    ]
    if not tokens:
        faults.append(f"{where}: the file holds no token; write one a line")
    return [hashlib.sha256(token).digest() for token in tokens], faults
