"""The BentoML service: its processes, its life and what it holds. `bentoml serve` in the project's root starts it."""

import asyncio
import gc
import logging
import multiprocessing
import os
from importlib.resources import files
from pathlib import Path

import bentoml
import cv2
import yaml
from starlette.types import ASGIApp, Receive, Scope, Send

from serving import logs
from serving.api.admission import Admission
from serving.api.bearer import BearerTokens
from serving.api.dispatch import Dispatch
from serving.api.middleware import Gate
from serving.api.routes import ROUTES
from serving.api.ui import Page
from serving.contract.model import Classifier, ModelRefused, open_model
from serving.inference.occlusion import Explainer
from serving.inference.predictor import Predictor
from serving.inference.reload import Reloader
from serving.metrics import Metrics, forget_dead_workers, remove_files
from serving.settings import Settings

# A child of BentoML's logger, so that it has the same level and destination.
log = logging.getLogger("bentoml.twinlens")


settings = Settings.from_env()
app = Dispatch(ROUTES)


def serve(classifier: Classifier) -> None:
    """Answer with this model from the next request on; requests under way are finished by the one before it."""
    predictor = Predictor(classifier, settings, app.state.metrics)
    app.state.metrics.serves(classifier)
    app.state.predictor = predictor


class DirectService(bentoml.Service[object]):  # type: ignore[misc]
    """A BentoML service whose requests go straight to `app`.

    BentoML's own way there (tracing, metrics by path, a timer a request) costs more than decoding and classifying a
    small image together. Its processes, sockets, configuration and life cycle are used as they are.
    """

    def to_asgi(self, is_main: bool = True) -> ASGIApp:
        """The application that a worker serves."""
        life_cycle = super().to_asgi(is_main)

        async def direct(scope: Scope, receive: Receive, send: Send) -> None:
            await (life_cycle if scope["type"] == "lifespan" else app.state.gate)(scope, receive, send)

        return direct


@bentoml.service(name="twinlens", workers=settings.workers, service_class=DirectService)
class Twinlens:
    """An image classifier that proves, before it is ready, that it answers as it did when it was evaluated."""

    def __init__(self) -> None:
        logs.write_json()
        cv2.setNumThreads(1)
        forget_dead_workers()
        app.state.settings = settings
        app.state.metrics = Metrics()
        app.state.admission = Admission(
            max_images=settings.max_queue,
            max_bytes=settings.max_bytes,
            observe=app.state.metrics.inside,
        )
        app.state.explainer = Explainer(settings, app.state.metrics)
        app.state.page = Page.load()
        app.state.openapi = yaml.safe_load(files("serving.api").joinpath("static/openapi.yaml").read_text())
        app.state.predictor = None
        self._reloader = Reloader(settings.model, _open, serve, app.state.metrics.reloaded)
        self._reloader.start()
        paths = {route.endpoint: route.path for route in ROUTES}
        app.state.gate = Gate(app, paths, app.state.admission, app.state.metrics, settings)
        # What lives as long as the process need not be looked at by every garbage collection.
        gc.collect()
        gc.freeze()

    @bentoml.on_startup  # type: ignore[untyped-decorator]
    async def watch(self) -> None:
        """From now on, follow the model file, and drain when a signal asks to end."""
        app.state.gate.drain_on_signals(settings.grace_s)
        if settings.reload_s:
            self._watching = asyncio.create_task(self._reloader.watch(settings.reload_s))

    @bentoml.on_shutdown  # type: ignore[untyped-decorator]
    def leave_nothing(self) -> None:
        """The last thing that a worker does."""
        remove_files()

    @bentoml.on_deployment  # type: ignore[untyped-decorator]
    @staticmethod
    def check() -> None:
        """Once, before any worker starts: a model that is refused ends the start with the reason; none is waited for.

        In a child process, so that the supervisor keeps neither the model's memory nor a CUDA context.
        """
        logs.write_json()
        if settings.workers > 1:
            # In a container BentoML replaces no worker that dies. With the only one the container ends and restarts;
            # of several the others would go on alone, and nobody would notice.
            os.environ.pop("BENTOML_CONTAINERIZED", None)
        child = multiprocessing.get_context("fork").Process(target=_check_model)
        child.start()
        child.join()
        if child.exitcode:
            raise SystemExit(child.exitcode)


def _open(path: Path) -> Classifier:
    return open_model(path, require_gpu=settings.require_gpu)


def _check_model() -> None:
    try:
        if settings.token_file:
            BearerTokens(settings.token_file)
    except ValueError as error:
        raise SystemExit(str(error)) from error
    if not settings.model.exists():
        missing = f"{settings.model}: no model yet; `python -m training` makes one"
        if not settings.reload_s:
            raise SystemExit(missing)
        log.warning("%s, and it is served as soon as it is there", missing)
        return
    try:
        _open(settings.model)
    except ModelRefused as error:
        raise SystemExit(f"not ready: {error}") from error
