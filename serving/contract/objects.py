"""Objects of a store, such as S3 or Google Cloud Storage: their URLs, their versions, and copies that are whole.

fsspec reads them, with the credentials that each store's own library finds in the environment.
"""

import errno
import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, NewType

from serving.contract.extras import install_command

Version = NewType("Version", str)
"""Differs when an object was written again."""

EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gcs", "gcs": "gcs"}
"""By protocol: the extra of this project that brings its library."""
STATE = {"ETag", "etag", "generation", "md5Hash", "Content-MD5", "Digest", "LastModified", "Last-Modified", "updated"}
STATE |= {"modified", "mtime", "created", "ino"}
"""What changes in the description of an object that is written again; each store gives some of them."""
OPTIONS: dict[str, dict[str, Any]] = {"s3": {"config_kwargs": {"retries": {"max_attempts": 0}}}}
"""By extra. s3fs tries five times itself, 77 s where a server hangs; botocore would try each of them five times."""
NO_ROOM = (errno.ENOSPC, errno.EDQUOT)
GONE = (404, 410)
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://\S.*")
_PASSWORD = re.compile(r"(?<=://)[^/@:\s]*:[^/@\s]*@")
"""With its user; a name alone before the `@` may be that of a container, as in `abfs://`."""
_HTTP_SECRETS = re.compile(r"(?<=://)[^/@\s]+@|\?[^\s'\"]*")


class StoreUnusable(ValueError):
    """A URL that cannot be read here; the message says what is missing."""


class Url:
    """Where an object, or a folder of objects, is. Its text may hold a password or a signature; `str` leaves it out.

    A plain class, which `dataclasses.asdict` leaves as it is, as it does a path.
    """

    def __init__(self, text: str) -> None:
        self.text = text

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Url) and self.text == other.text

    def __hash__(self) -> int:
        return hash(self.text)

    def __repr__(self) -> str:
        return f"Url({str(self)!r})"

    def __str__(self) -> str:
        return self.without_secrets(self.text)

    @property
    def protocol(self) -> str:
        """What stands before `://`, in lower case."""
        return self.text.partition("://")[0].lower()

    @property
    def name(self) -> str:
        """The last part of the path."""
        path = self.text.partition("://")[2]
        return (re.split(r"[?#]", path)[0] if self.is_http else path).rstrip("/").rpartition("/")[2]

    def beside(self, name: str) -> "Url":
        """The object `name` in the folder of this one."""
        query = self.text.partition("?")[2] if self.is_http else ""
        return Url(f"{self.folder.text}/{name}{'?' if query else ''}{query}")

    @property
    def folder(self) -> "Url":
        """The folder of this object, without what a query asks of a web server."""
        path = self.text.partition("?")[0] if self.is_http else self.text
        return Url(path.rstrip("/").rpartition("/")[0])

    def without_secrets(self, text: str) -> str:
        """A text about this URL, such as an error, as it may be shown: HTTP has secrets in its queries, too."""
        return (_HTTP_SECRETS if self.is_http else _PASSWORD).sub("", text)

    @property
    def is_http(self) -> bool:
        """Whether a web server answers."""
        return self.protocol in ("http", "https")


Location = Path | Url


def location(text: str) -> Location:
    """A path, or a URL where the text has `://` after the name of a protocol."""
    return Url(text) if _URL.fullmatch(text) else Path(text)


class Store:
    """Reads the object, or reads and writes the folder of objects, at a URL.

    What goes wrong is an OSError, whichever library raised it: FileNotFoundError where there is no such object.
    """

    def __init__(self, url: Url) -> None:
        """Raises StoreUnusable. Nothing is connected yet."""
        self.url = url
        # Up to 60 ms, and the libraries of a store, which a local file does without.
        import fsspec  # noqa: PLC0415

        try:
            fsspec.get_filesystem_class(url.protocol)
        except ImportError as error:
            extra = EXTRAS.get(url.protocol)
            needed = install_command(extra) if extra else str(error)
            raise StoreUnusable(f"{url}: {url.protocol}:// needs a library that is not installed: {needed}") from error
        except ValueError as error:
            raise StoreUnusable(
                f"{url}: expected a path, or a URL that fsspec reads, such as s3:// ({error})"
            ) from error

    def version(self) -> Version:
        """The version of the object now."""
        with self._explained():
            files, path = self._opened
            facts = files.info(path)
        return self._version(facts)

    def versions(self) -> dict[str, Version]:
        """The versions of all objects below the folder, by their path in it, without those that stand for folders."""
        with self._explained():
            files, root = self._opened
            root = root.rstrip("/") + "/"
            listing = sorted(files.find(root, detail=True).items())
        return {path.removeprefix(root): self._version(facts) for path, facts in listing if not path.endswith("/")}

    def download(self, file: Path, name: str | None = None) -> None:
        """Copy the object, or the one called `name` in the folder, to `file`, which has all of it or is left as it was.

        Of an object that is written meanwhile the copy may be a mixture: large ones are read in parts at the same time.
        Its version before and after says so.
        """
        partial = file.with_name(f".{file.name}.{os.getpid()}.partial")
        file.parent.mkdir(parents=True, exist_ok=True)
        partial.touch()  # here, what is wrong with the disk is not taken for the store's
        try:
            with self._explained():
                files, path = self._opened
                files.get_file(path if name is None else f"{path.rstrip('/')}/{name}", str(partial))
            with partial.open("rb") as copied:
                os.fsync(copied.fileno())
            partial.replace(file)
        finally:
            partial.unlink(missing_ok=True)

    def upload(self, file: Path) -> None:
        """Write a file into the folder, under its own name; stores show it when all of it is there."""
        with self._explained("written"):
            files, root = self._opened
            files.put_file(str(file), f"{root.rstrip('/')}/{file.name}")

    def delete(self, name: str) -> None:
        """Delete the object `name` of the folder, if there is one."""
        with self._explained("deleted"):
            files, root = self._opened
            path = f"{root.rstrip('/')}/{name}"
            if files.exists(path):
                files.rm_file(path)

    @cached_property
    def _opened(self) -> tuple[Any, str]:
        """The file system and the path in it; some file systems connect here already."""
        from fsspec.core import url_to_fs  # noqa: PLC0415

        options = OPTIONS.get(EXTRAS.get(self.url.protocol, ""), {})
        files, path = url_to_fs(self.url.text, use_listings_cache=False, **options)
        return files, str(path)

    def _version(self, facts: Mapping[str, Any]) -> Version:
        """Raises OSError where nothing in the description would change with the object."""
        if facts.get("type") == "directory":
            raise IsADirectoryError(f"{self.url}: expected an object, and this is a folder")
        state = {key: str(facts[key]) for key in sorted(STATE) if facts.get(key)}
        if not state:
            raise OSError(f"{self.url}: there is neither an ETag nor a time, so that a new version would go unnoticed")
        return Version(json.dumps(state | {"size": facts.get("size")}))

    @contextmanager
    def _explained(self, done: str = "read") -> Iterator[None]:
        try:
            yield
        except Exception as error:  # each store's library has classes of its own
            if isinstance(error, OSError) and error.errno in NO_ROOM:
                raise
            cause: BaseException = error
            if isinstance(error, FileNotFoundError) and done == "read":
                # Over HTTP, fsspec raises it whatever goes wrong.
                if not self.url.is_http or error.__cause__ is None or getattr(error.__cause__, "status", 0) in GONE:
                    raise FileNotFoundError(f"{self.url}: there is no such object") from error
                cause = error.__cause__
            reason = self.url.without_secrets(f"{type(cause).__name__}: {cause}")
            raise OSError(f"{self.url}: cannot be {done} ({reason})") from error
