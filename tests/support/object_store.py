"""Object stores as real processes: moto's S3, and a web server with ETags."""

import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property, partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import httpx
import pytest

from tests.support.processes import wait_until
from tests.support.server import free_port

BUCKET = "bucket"


class S3:
    """A bucket of moto's S3 server, which accepts any credentials."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def environment(self) -> dict[str, Any]:
        """The variables that boto reads."""
        return {
            "AWS_ACCESS_KEY_ID": "somebody",
            "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_ENDPOINT_URL_S3": f"http://127.0.0.1:{self._port}",
        }

    def start(self) -> None:
        command = [sys.executable, "-m", "moto.server", "--host", "127.0.0.1", "--port", str(self._port)]
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        wait_until(self._answers)
        self._client.create_bucket(Bucket=BUCKET)

    def stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def pause(self) -> None:
        """It accepts connections and does not answer."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """It answers again, also what it was asked meanwhile."""
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def put(self, key: str, data: bytes | Path) -> None:
        content = data if isinstance(data, bytes) else data.read_bytes()
        self._client.put_object(Bucket=BUCKET, Key=key, Body=content)

    def put_folder(self, key: str, folder: Path) -> None:
        """Every file below `folder`, as `aws s3 sync` uploads it."""
        for path in sorted(path for path in folder.rglob("*") if path.is_file()):
            self.put(f"{key}/{path.relative_to(folder)}", path)

    def delete(self, key: str) -> None:
        self._client.delete_object(Bucket=BUCKET, Key=key)

    def keys(self) -> list[str]:
        return [each["Key"] for each in self._client.list_objects_v2(Bucket=BUCKET).get("Contents", [])]

    @cached_property
    def _client(self) -> Any:
        import boto3

        given = self.environment
        return boto3.client(
            "s3",
            endpoint_url=given["AWS_ENDPOINT_URL_S3"],
            region_name=given["AWS_DEFAULT_REGION"],
            aws_access_key_id=given["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key=given["AWS_SECRET_ACCESS_KEY"],
        )

    def _answers(self) -> bool:
        try:
            return httpx.get(f"http://127.0.0.1:{self._port}/").status_code == 200
        except httpx.TransportError:
            return False


@contextmanager
def s3() -> Iterator[S3]:
    """An empty bucket; its content is lost when the server is stopped. Skips the test where moto is not installed."""
    pytest.importorskip("moto")
    # This process keeps connections by their options, and the address is in the environment.
    pytest.importorskip("s3fs").S3FileSystem.clear_instance_cache()
    store = S3(free_port())
    store.start()
    try:
        yield store
    finally:
        store.stop()


@dataclass
class Web:
    """What a web server has; `before_get` is called before each body is sent."""

    files: dict[str, bytes] = field(default_factory=dict)
    before_get: Callable[[str], None] = lambda path: None
    etags: bool = True
    address: str = ""


@contextmanager
def web() -> Iterator[Web]:
    """A web server whose ETags are the digests of its files."""
    files = Web()
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(_Handler, files)) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        files.address = f"http://127.0.0.1:{server.server_port}"
        yield files
        server.shutdown()


class _Handler(BaseHTTPRequestHandler):
    def __init__(self, web: Web, *arguments: Any) -> None:
        self._web = web
        super().__init__(*arguments)

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        body = self._answer()
        self._web.before_get(self.path)
        self.wfile.write(body)

    def _answer(self) -> bytes:
        body = self._web.files.get(self.path.partition("?")[0].lstrip("/"))
        self.send_response(200 if body is not None else 404)
        self.send_header("Content-Length", str(len(body or b"")))
        if self._web.etags and body is not None:
            self.send_header("ETag", f'"{hash(body)}"')
        self.end_headers()
        return body or b""

    def log_message(self, *arguments: Any) -> None:
        pass
