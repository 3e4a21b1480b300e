"""What every request of a worker process shares."""

from dataclasses import dataclass
from typing import Any

from serving.api.admission import Admission
from serving.api.readiness import Readiness
from serving.api.ui import Page
from serving.inference.occlusion import Explainer
from serving.inference.similar import Searcher
from serving.metrics import Metrics
from serving.settings import Settings


@dataclass(frozen=True, kw_only=True)
class ServiceState:
    """Made once, when the worker starts; each endpoint and the middleware get it as an argument."""

    settings: Settings
    metrics: Metrics
    admission: Admission
    readiness: Readiness
    explainer: Explainer
    searcher: Searcher
    page: Page
    openapi: dict[str, Any]
    """The document that /docs.json returns."""
    bento_schema: dict[str, Any]
    """The document that /schema.json returns."""
