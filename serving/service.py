"""The BentoML service: its processes, their start and their end. `bentoml serve` in the project's root starts it."""

import asyncio
import gc
import logging
import multiprocessing
import os
from importlib.resources import files
from pathlib import Path
from typing import Any

import bentoml
import cv2
import numpy as np
import yaml
from starlette.types import ASGIApp, Receive, Scope, Send

from serving import bento_config, logs
from serving.api.admission import Admission
from serving.api.bearer import BearerTokens
from serving.api.middleware import ANY, LOOPBACK, Middleware
from serving.api.readiness import Readiness
from serving.api.routes import routes_of
from serving.api.state import ServiceState
from serving.api.ui import Page
from serving.connection import bound_connections
from serving.contract import gpu
from serving.contract.drift import LIMIT
from serving.contract.model import Classifier, ModelRefused, open_model
from serving.contract.session import RAISED
from serving.exposition import forget_dead_workers, forget_this_worker
from serving.inference.mirror import mirror_of
from serving.inference.occlusion import Explainer
from serving.inference.predictor import Predictor
from serving.inference.reload import Reloader
from serving.inference.similar import Searcher
from serving.metrics import FetchOutcome, Metrics
from serving.settings import PREFIX, Settings
from serving.traced import Traced

# A child of BentoML's logger, so that it has the same level and destination.
log = logging.getLogger("bentoml.twinlens")

FETCH_S = 10
"""Seconds that the start waits for an object. A store that accepts connections and hangs may take minutes to fail."""
POLL_S = 1
"""Seconds between two polls by one of several workers at its own model."""
LAST_ANSWERS_S = 1
"""Seconds in which a worker that has lost its model may still answer what it has taken."""


def _settings() -> Settings:
    try:
        return Settings.from_env()
    except ValueError as error:
        raise SystemExit(str(error)) from error  # a sentence, without the trace through the importers above


settings = _settings()


def _number_of_workers() -> int:
    """Processes that serve. A child counts the GPUs: forks of a process that has asked CUDA cannot use it."""
    if settings.workers != "gpus":
        return settings.workers
    child = multiprocessing.get_context("fork").Process(target=_exit_with_number_of_gpus)
    child.start()
    child.join()
    return max(1, child.exitcode or 0)


def _exit_with_number_of_gpus() -> None:
    os._exit(len(gpu.gpus()))


number_of_workers = _number_of_workers()


class _Worker:
    """The application of this worker process, set when BentoML makes the service's instance."""

    application: ASGIApp


class DirectService(bentoml.Service[object]):  # type: ignore[misc]
    """A BentoML service whose requests go straight to the worker's application.

    BentoML's own layers (spans, metrics by path, a timer for each request) cost more than decoding and classifying
    a small image. Its processes, sockets and life cycle are used unchanged, and of its configuration what
    `serving.bento_config` says.
    """

    def to_asgi(self, is_main: bool = True) -> ASGIApp:
        """The application that a worker serves."""
        life_cycle = super().to_asgi(is_main)
        bound_connections()  # BentoML asks for the application before it configures uvicorn

        async def direct(scope: Scope, receive: Receive, send: Send) -> None:
            await (life_cycle if scope["type"] == "lifespan" else _Worker.application)(scope, receive, send)

        return direct


@bentoml.service(name="twinlens", workers=number_of_workers, service_class=DirectService)
class Twinlens:
    """An image classifier that checks, before it is ready, that it predicts as it did when it was evaluated."""

    def __init__(self) -> None:
        logs.write_json()
        cv2.setNumThreads(1)
        forget_dead_workers()
        metrics = Metrics()
        self._state = ServiceState(
            settings=settings,
            metrics=metrics,
            admission=Admission(
                max_images=settings.max_queue,
                max_bytes=settings.max_bytes,
                observe=metrics.requests.set_images_in_flight,
            ),
            readiness=Readiness(),
            explainer=Explainer(settings, metrics),
            searcher=Searcher(settings, metrics),
            page=Page.load(),
            openapi=_openapi(settings.name),
            bento_schema=_document("bento_schema.yaml"),
        )
        self._tracing = bento_config.tracing()
        self._reloader = Reloader(settings.file, _open, self._serve, metrics.model.reloaded)
        self._reloader.start()
        address = bento_config.loopback_address()
        self._middleware = Middleware(self._state, LOOPBACK | {address} if address else ANY)
        traced = Traced(self._middleware, self._tracing, routes_of(settings)) if self._tracing else self._middleware
        _Worker.application = bento_config.with_cors(traced)
        # Objects that live as long as the process are left out of garbage collection.
        gc.collect()
        gc.freeze()

    def _serve(self, classifier: Classifier) -> None:
        """Answer new requests with this model; the previous model finishes the running ones."""
        predictor = Predictor(classifier, settings, self._state.metrics, self._tracing)
        self._state.metrics.serves(classifier)
        limits, version = settings.drift_limits, classifier.card.version
        self._state.metrics.model.limit_drift(limits.of(version))
        if limits.version not in (None, version):
            log.warning(
                "TWINLENS_DRIFT_LIMITS are those of model %s, and %s answers: the limit of every feature is %g until "
                "those of this model are set, which `python -m training robustness` measures",
                limits.version,
                version,
                LIMIT,
            )
        self._state.readiness.predictor = predictor

    def _polled(self, outcome: FetchOutcome) -> None:
        self._state.metrics.model.polled(outcome)
        self._state.readiness.polled(outcome)

    @bentoml.on_startup  # type: ignore[untyped-decorator]
    async def watch(self) -> None:
        """Watch the model file, and drain when a signal asks the process to end."""
        self._middleware.drain_on_signals(settings.grace_s)
        if number_of_workers > 1:
            self._ending = asyncio.create_task(self._end_without_model())
        if not settings.reload_s:
            return
        if mirror := mirror_of(settings, training_images=settings.similar):
            mirror.watch(settings.reload_s, self._polled)
        self._watching = asyncio.create_task(self._reloader.watch(settings.reload_s))

    async def _end_without_model(self) -> None:
        """End the process when its model is lost, and BentoML replaces it.

        Of several workers a probe meets this one too seldom to restart the container, which has others that answer.
        """
        readiness = self._state.readiness
        while readiness.alive or readiness.draining:  # a shutdown ends it anyway
            await asyncio.sleep(POLL_S)
        log.error(
            "the model has failed three times in a row, or hangs; this worker ends, and another one takes its place"
        )
        await self._middleware.drain(LAST_ANSWERS_S)
        forget_this_worker()
        os._exit(1)  # a regular end would wait for a run of the model that hangs

    @bentoml.on_shutdown  # type: ignore[untyped-decorator]
    def end(self) -> None:
        """Runs last in a worker."""
        bento_config.send_last_spans()
        forget_this_worker()

    @bentoml.on_deployment  # type: ignore[untyped-decorator]
    @staticmethod
    def check() -> None:
        """Runs once, before any worker: a refused model ends the start with the reason; a missing one is waited for.

        It checks in a child process, so that the supervisor holds neither the model's memory nor a CUDA context.
        """
        logs.write_json()
        bento_config.close_control_ports()
        if number_of_workers > 1:
            # In a container BentoML does not replace a worker that dies. A single worker's death ends the container,
            # which restarts; of several workers, the others would continue with less capacity, unnoticed.
            os.environ.pop("BENTOML_CONTAINERIZED", None)
        child = multiprocessing.get_context("fork").Process(target=_check_model)
        child.start()
        child.join()
        if child.exitcode:
            raise SystemExit(child.exitcode)


def _openapi(model: str) -> dict[str, Any]:
    """The description of the routes, for a model of this name."""
    document = _document("openapi.yaml")
    document["components"]["parameters"]["name"]["schema"]["enum"] = [model]
    return document


def _document(name: str) -> dict[str, Any]:
    document: dict[str, Any] = yaml.safe_load(files("serving.api").joinpath("static", name).read_text())
    return document


def _open(path: Path) -> Classifier:
    """Open the model on this worker's device. BentoML numbers workers from 1; a replacement keeps the number.

    Raises ModelRefused.
    """
    worker = bentoml.server_context.worker_index or 1
    placement = settings.placement(worker - 1 if settings.workers == "gpus" else 0)
    classifier = open_model(path, placement=placement, key=settings.public_key, training_images=settings.similar)
    if settings.require_certificate and classifier.card.certificate is None:
        raise ModelRefused(
            f"{path}: its card has no certificate of promotion, which {PREFIX}REQUIRE_CERTIFICATE asks for"
        )
    return classifier


def _check_model() -> None:
    try:
        bento_config.check(number_of_workers)
        if settings.token_file:
            BearerTokens(settings.token_file)
        if mirror := mirror_of(settings, training_images=settings.similar):
            mirror.refresh_within(FETCH_S if settings.reload_s else None)  # without reloads this is the only poll
    except ValueError as error:
        raise SystemExit(str(error)) from error
    if not settings.file.exists():
        missing = f"{settings.model}: no model yet; `python -m training` makes one"
        if not settings.reload_s:
            raise SystemExit(missing)
        log.warning("%s, and it is served as soon as it exists", missing)
        return
    try:
        _run_largest_batch(_open(settings.file))
    except (ModelRefused, MemoryError) as error:
        raise SystemExit(f"not ready: {error}") from error


def _run_largest_batch(classifier: Classifier) -> None:
    """What takes most memory of all that a worker begins with. Raises ModelRefused.

    EfficientNet-Lite0 takes 0.4 s for 32 images of 224 px on one core.
    """
    size, images = classifier.card.preprocessing, classifier.card.images_at_once(settings.max_batch)
    try:
        classifier.predict(np.zeros((images, size.height, size.width, size.channels), np.uint8))
    except RAISED as error:
        raise ModelRefused(f"{settings.model}: a batch of {images} images cannot run ({error})") from error
