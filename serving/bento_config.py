"""BentoML's own configuration, a file at BENTOML_CONFIG or JSON in BENTOML_CONFIG_OVERRIDES: what of it counts here.

BentoML itself honours host, port, TLS and backlog. This service honours `http.cors` and `tracing` below
`services.twinlens`, and refuses what one of its own settings replaces.
"""

import ipaddress
import os
import socket
import sys
from collections.abc import Sequence
from threading import Thread
from typing import Any

from bentoml._internal.configuration.containers import BentoMLContainer
from bentoml._internal.utils import circus
from bentoml.exceptions import BentoMLException
from opentelemetry.sdk.trace import TracerProvider
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp

from serving.contract.extras import install_command
from serving.tracing import Tracing

SERVICE = "twinlens"
OPTIONS = {
    "--api-workers": ("BENTOML_API_WORKERS", "TWINLENS_WORKERS"),
    "--timeout": ("BENTOML_TIMEOUT", "TWINLENS_TIMEOUT_S"),
}
"""Options of `bentoml serve` that would have no effect: the variable of each, and the setting to use."""
TIMEOUT_S = 60
"""BentoML's default of `traffic.timeout`."""
SOCKET_OPTION = "--fd"
"""Of a worker's command line: the descriptor of the socket on which it listens."""
FLUSH_S = 2
"""Seconds at the end of a worker in which its last spans may be sent; those of a collector that hangs are lost."""


def check(workers: int, arguments: Sequence[str] | None = None) -> None:
    """Raises ValueError for what BentoML would accept and this service would not do; the message names the setting.

    `workers` is the number that the settings ask for, `arguments` the command line of `bentoml serve`. Call it in a
    process of its own: it makes the exporter of the spans.
    """
    given = {word.partition("=")[0] for word in (sys.argv if arguments is None else arguments)}
    for option, (variable, setting) in OPTIONS.items():
        if option in given or variable in os.environ:
            raise ValueError(f"{option if option in given else variable} has no effect here: set {setting}")
    config = BentoMLContainer.config.get()["services"][SERVICE]
    if config["workers"] != workers:
        raise ValueError(
            f"workers={config['workers']} in BentoML's configuration has no effect here: set TWINLENS_WORKERS"
        )
    traffic = config["traffic"]
    for name, default, setting in (("timeout", TIMEOUT_S, "TIMEOUT_S"), ("max_concurrency", None, "MAX_QUEUE")):
        if traffic[name] != default:
            raise ValueError(f"traffic.{name} in BentoML's configuration has no effect here: set TWINLENS_{setting}")
    if BentoMLContainer.http.cors.enabled.get() and not BentoMLContainer.http.cors.access_control_allow_origins.get():
        raise ValueError("http.cors in BentoML's configuration is enabled, and access_control_allow_origins names none")
    if BentoMLContainer.tracing.otlp.compression.get() is not None:
        # BentoML hands the word on to an exporter that takes a member of an enumeration.
        raise ValueError("tracing.otlp.compression in BentoML's configuration: set OTEL_EXPORTER_OTLP_COMPRESSION")
    try:
        tracing()
    except (BentoMLException, ImportError) as error:
        raise ValueError(
            f"tracing in BentoML's configuration: {error}; exporter_type otlp with protocol http needs "
            f"a package: {install_command('otlp')}"
        ) from error


class _PrivateArbiter(circus.Arbiter):
    def __init__(self, watchers: Any, endpoint: str, pubsub_endpoint: str, **options: Any) -> None:
        if not options.get("plugins"):  # that of `--reload` is a process of its own
            endpoint, pubsub_endpoint = "inproc://twinlens-control", "inproc://twinlens-events"
        super().__init__(watchers, endpoint, pubsub_endpoint, **options)


def close_control_ports() -> None:
    """Keep the supervisor from taking commands at ports of the loopback; call it before BentoML makes the supervisor.

    They ask for no secret, so any user of the machine could run programs as the user of the service.
    """
    circus.Arbiter = _PrivateArbiter  # type: ignore[misc]


def loopback_address() -> str | None:
    """The address of this worker where only its machine reaches it; None in a process that is no worker of BentoML."""
    if SOCKET_OPTION not in sys.argv:
        return None
    with socket.socket(fileno=os.dup(int(sys.argv[sys.argv.index(SOCKET_OPTION) + 1]))) as listening:
        if listening.family not in (socket.AF_INET, socket.AF_INET6):
            return None
        address: str = listening.getsockname()[0]
        return address if ipaddress.ip_address(address).is_loopback else None


def with_cors(application: ASGIApp) -> ASGIApp:
    """The application for pages of other origins too, if `http.cors` is enabled; it answers their preflights."""
    if not BentoMLContainer.http.cors.enabled.get():
        return application
    options: dict[str, Any] = BentoMLContainer.access_control_options.get()
    return CORSMiddleware(application, **options)


def tracing() -> Tracing | None:
    """What makes spans, if `tracing` names an exporter. Raises BentoMLException, ImportError."""
    if BentoMLContainer.tracing.exporter_type.get() is None:
        return None
    return Tracing(BentoMLContainer.tracer_provider.get(), BentoMLContainer.tracing_excluded_urls.get().url_disabled)


def send_last_spans() -> None:
    """Send the spans that a worker still holds, for at most FLUSH_S."""
    if BentoMLContainer.tracing.exporter_type.get() is None:
        return
    provider: TracerProvider = BentoMLContainer.tracer_provider.get()
    sending = Thread(target=provider.shutdown, daemon=True)
    sending.start()
    sending.join(FLUSH_S)
