"""The settings of the service: environment variables that are read once, when the service starts."""

import hashlib
import os
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, InstanceOf, ValidationError
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from serving.contract import gpu
from serving.contract.decode import MAX_BYTES, MAX_PIXELS
from serving.contract.drift import FEATURES, LIMIT, MIN_WINDOW, Feature
from serving.contract.files.names import MODEL
from serving.contract.files.signature import EXPECTED_KEY, PublicKey, SignatureRefused
from serving.contract.objects import Url, location
from serving.contract.session import Placement

PREFIX = "TWINLENS_"

# Each description ends the sentence "NAME='value': expected ...", the message for a value out of range.
Flag = Annotated[
    bool,
    BeforeValidator(lambda text: {"0": False, "1": True}.get(text, text)),
    Field(strict=True, description="0 or 1"),
]
Requirement = Annotated[
    Literal[False, True, "auto"],
    BeforeValidator(lambda text: {"0": False, "1": True}.get(text, text)),
    Field(description="0, 1 or auto"),
]
Count = Annotated[int, Field(gt=0, description="a whole number above 0")]
Bytes = Annotated[int | None, Field(gt=0, description="a whole number above 0")]
Workers = Annotated[Annotated[int, Field(gt=0)] | Literal["gpus"], Field(description="a whole number above 0, or gpus")]
Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False, description="a number above 0")]
Interval = Annotated[float, Field(ge=0, allow_inf_nan=False, description="0 or a number above 0")]
Confidence = Annotated[float | None, Field(gt=0, lt=1, description="a number above 0 and below 1")]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][\w.-]*$", description="letters, digits, ., _ and -")]
UrlPath = Annotated[str | None, Field(pattern=r"^/[^\s{}?#]+$", description="a path that begins with /")]
Hosts = Annotated[
    frozenset[Annotated[str, Field(pattern=r"^(\*|[a-z0-9_.-]+|\[[0-9a-f:.]+\])$")]] | None,
    NoDecode,
    BeforeValidator(lambda text: [host.strip().lower() for host in text.split(",")] if isinstance(text, str) else text),
    Field(description="names of hosts without a port, separated by commas, or *"),
]
TrustedKey = Annotated[
    PublicKey | None,
    BeforeValidator(lambda text: PublicKey.read(text) if isinstance(text, str) else text),
    Field(description=EXPECTED_KEY),
]
Source = Annotated[
    Path | InstanceOf[Url],
    BeforeValidator(lambda text: location(text) if isinstance(text, str) else text),
    Field(description="a path or a URL"),
]


class DriftLimits(BaseModel):
    """The indices above which features have drifted, and the model for which they were measured."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: Annotated[str, Field(pattern="^[0-9a-f]{12}(-int8)?$")] | None = None
    """None: they hold for every model."""
    by_feature: dict[Feature, Annotated[float, Field(gt=0, allow_inf_nan=False)]] = {}

    def of(self, version: str) -> dict[Feature, float]:
        """The limit of each feature for the model of this version."""
        return dict.fromkeys(FEATURES, LIMIT) | (self.by_feature if self.version in (None, version) else {})


DriftLimitsText = Annotated[
    DriftLimits,
    NoDecode,
    BeforeValidator(lambda text: _drift_limits(text) if isinstance(text, str) else text),
    Field(
        description="such as brightness=0.25,label=0.4, before it the model's version and a colon, "
        f"numbers above 0 of {', '.join(FEATURES)}"
    ),
]
Window = Annotated[int, Field(ge=MIN_WINDOW, description=f"a whole number of at least {MIN_WINDOW}")]

# For a Service named `twinlens` or `twinlens-...`, Kubernetes adds these variables to every container of the namespace:
# https://kubernetes.io/docs/tutorials/services/connect-applications-service/#environment-variables
_SERVICE = re.compile(
    rf"{PREFIX}(\w+_)?(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT_\d+_(TCP|UDP|SCTP)(_PROTO|_PORT|_ADDR)?)"
)
_SERVICE_URL = re.compile(rf"{PREFIX}(\w+_)?PORT=(tcp|udp|sctp)://.*")  # without a protocol, it is a wrong setting


class Settings(BaseSettings):
    """Each field is the environment variable TWINLENS_<FIELD>. The table in serving/README.md describes each.

    A keyword argument replaces the variable. Use `from_env` for messages that name the variable.
    """

    model_config = SettingsConfigDict(env_prefix=PREFIX, frozen=True, hide_input_in_errors=True)

    model: Source = Path("runs/latest", MODEL)
    cache: Path | None = None
    name: Name = "twinlens"
    reload_s: Interval = 2.0
    require_gpu: Requirement = False
    require_certificate: Flag = False
    public_key: TrustedKey = None
    gpu_mem_limit: Bytes = None
    max_bytes: Count = MAX_BYTES
    max_pixels: Count = MAX_PIXELS
    max_batch: Count = 32
    max_queue: Count = 128
    max_explanations: Count = 2
    workers: Workers = 1
    timeout_s: Seconds = 10.0
    idle_s: Seconds = 5.0
    grace_s: Seconds = 25.0
    hosts: Hosts = None
    token_file: Path | None = None
    protect_metrics: Flag = False
    health_route: UrlPath = None
    predict_route: UrlPath = None
    log_requests: Flag = False
    slow_s: Seconds = 1.0
    abstain_below: Confidence = None
    drift_window: Window = 1000
    drift_limits: DriftLimitsText = DriftLimits()
    similar: Flag = True
    show_training: Flag = False
    training_data: Path | None = None

    @classmethod
    def from_env(cls) -> "Settings":
        """Read the environment. Raises ValueError for a wrong value and for an unknown name with this prefix.

        The message names the variable, its value and the expected values.
        """
        names = {PREFIX + field.upper() for field in cls.model_fields}
        unknown = sorted(
            name
            for name, value in os.environ.items()
            if name.startswith(PREFIX) and name not in names and not _is_from_kubernetes(name, value)
        )
        if unknown:
            raise ValueError(f"{', '.join(unknown)}: no such setting; there are {', '.join(sorted(names))}")
        try:
            settings = cls()
        except ValidationError as error:
            faults = dict.fromkeys(_message(fault) for fault in error.errors())
            raise ValueError("; ".join(faults)) from error
        if settings.protect_metrics and settings.token_file is None:
            raise ValueError(f"{PREFIX}PROTECT_METRICS=1: expected the accepted tokens in {PREFIX}TOKEN_FILE")
        if settings.show_training and (settings.training_data is None or not settings.training_data.is_dir()):
            given = f", not {str(settings.training_data)!r}" if settings.training_data else ""
            raise ValueError(
                f"{PREFIX}SHOW_TRAINING=1: expected the folder of the training images in {PREFIX}TRAINING_DATA{given}"
            )
        return settings

    @property
    def file(self) -> Path:
        """The file of the model; of one at a URL, where its local copy is, in a folder of its own below `cache`."""
        if isinstance(self.model, Path):
            return self.model
        cache = self.cache or Path(tempfile.gettempdir(), f"twinlens-{os.getuid()}")
        return cache / hashlib.sha256(self.model.text.encode()).hexdigest()[:16] / (self.model.name or MODEL)

    def placement(self, device_id: int = 0) -> Placement:
        """Where the graph of a process runs that has GPU number `device_id`, if there is one.

        With `require_gpu` auto, a GPU is required where one is visible; asking for it makes forks unable to use CUDA.
        """
        required = gpu.visible() if self.require_gpu == "auto" else self.require_gpu
        return Placement(on="cuda" if required else "auto", device_id=device_id, gpu_mem_limit=self.gpu_mem_limit)


def _drift_limits(text: str) -> dict[str, Any]:
    """The parts of `VERSION:NAME=VALUE,NAME=VALUE`, of which the version may be left out. Raises ValueError."""
    version, colon, text = text.rpartition(":")
    pairs = [pair.split("=") for pair in text.split(",")] if text else []
    names = [name.strip() for name, _ in pairs]
    if len(set(names)) < len(names):
        raise ValueError("a name is there twice")
    by_feature = {name.strip(): value for name, value in pairs}
    return {"version": version, "by_feature": by_feature} if colon else {"by_feature": by_feature}


def _is_from_kubernetes(name: str, value: str) -> bool:
    return bool(_SERVICE.fullmatch(name) or _SERVICE_URL.fullmatch(f"{name}={value}"))


def _message(fault: Mapping[str, Any]) -> str:
    field = str(fault["loc"][0])
    if isinstance(reason := fault.get("ctx", {}).get("error"), SignatureRefused):
        return f"{PREFIX}{field.upper()}: {reason}"  # without the value, which may be a secret by mistake
    name = f"{PREFIX}{field.upper()}"
    # Of several values in one variable, the fault has only the wrong one.
    return f"{name}={os.environ.get(name, fault['input'])!r}: expected {Settings.model_fields[field].description}"
