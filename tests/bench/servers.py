"""Who is compared: how each server is installed, started and asked."""

import base64
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.bench.pictures import ROOT

PEERS = Path(__file__).parent / "peers"
BOUNDARY = "boundary-of-the-form"


@dataclass(frozen=True)
class Request:
    """What is sent to ask for the class of one image."""

    path: str
    content_type: str
    body: bytes


def multipart(image: bytes) -> Request:
    head = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="image"; filename="image.jpg"\r\n'
    body = f"{head}Content-Type: image/jpeg\r\n\r\n".encode() + image + f"\r\n--{BOUNDARY}--\r\n".encode()
    return Request("/predict", f"multipart/form-data; boundary={BOUNDARY}", body)


def raw(image: bytes) -> Request:
    return Request("/predict", "image/jpeg", image)


def open_inference_protocol(image: bytes) -> Request:
    tensor = {
        "name": "image",
        "shape": [1, 1],
        "datatype": "BYTES",
        "parameters": {"content_type": "base64"},
        "data": [base64.b64encode(image).decode()],
    }
    return Request("/v2/models/peer/infer", "application/json", json.dumps({"inputs": [tensor]}).encode())


def _label(answer: dict[str, Any]) -> str:
    return str(answer["label"])


def _label_of_output(answer: dict[str, Any]) -> str:
    return str(json.loads(answer["outputs"][0]["data"][0])["label"])


@dataclass(frozen=True, kw_only=True, eq=False)
class Server:
    """A server to compare. In `command` and `environment`, {port}, {port+1}, {port+2} and {model} are filled in.

    `requirements` is installed in an environment of the peer's own; None: it runs in this project's. With `int8`, it
    serves the quantised file beside the model.
    """

    name: str
    command: tuple[str, ...]
    folder: Path
    requirements: Path | None = None
    environment: dict[str, str] = field(default_factory=dict)
    encode: Callable[[bytes], Request] = multipart
    label: Callable[[dict[str, Any]], str] = _label
    int8: bool = False

    def file(self, model: Path) -> Path:
        """What it serves of a run whose float32 file is `model`."""
        return model.with_suffix(".int8.onnx") if self.int8 else model


def _ours(name: str, encode: Callable[[bytes], Request] = multipart, *, int8: bool = False) -> Server:
    return Server(
        name=name,
        command=("bentoml", "serve", "--host", "127.0.0.1", "--port", "{port}"),
        folder=ROOT,
        environment={"TWINLENS_MODEL": "{model}"},
        encode=encode,
        int8=int8,
    )


def _peer(name: str, folder: str, *command: str, **more: Any) -> Server:
    return Server(
        name=name,
        command=command,
        folder=PEERS / folder,
        requirements=PEERS / folder / "requirements.txt",
        environment={"MODEL": "{model}", "PYTHONPATH": str(PEERS)} | more.pop("environment", {}),
        **more,
    )


OURS, AGAIN, RAW, INT8 = "twinlens", "twinlens, again", "twinlens, raw body", "twinlens, int8"
BENTOML, FASTAPI, LITSERVE, MLSERVER = "BentoML", "FastAPI", "LitServe", "MLServer"
ADDRESS = ("--host", "127.0.0.1", "--port", "{port}")
MLSERVER_PORTS = {"HTTP": "{port}", "GRPC": "{port+1}", "METRICS": "{port+2}"}

SERVERS = [
    _ours(OURS),
    _ours(AGAIN),
    _ours(RAW, encode=raw),
    _ours(INT8, int8=True),
    _peer(BENTOML, "bentoml", "bentoml", "serve", "service:Peer", *ADDRESS),
    _peer(FASTAPI, "fastapi", "uvicorn", "app:app", "--no-access-log", *ADDRESS),
    _peer(LITSERVE, "litserve", "python", "server.py", "{port}"),
    _peer(
        MLSERVER,
        "mlserver",
        *("mlserver", "start", "."),
        environment={f"MLSERVER_{name}_PORT": port for name, port in MLSERVER_PORTS.items()},
        encode=open_inference_protocol,
        label=_label_of_output,
    ),
]
