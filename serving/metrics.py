"""The Prometheus metrics: what was answered, what was refused, where time went."""

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import get_args

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge, Histogram, generate_latest, values
from prometheus_client.metrics_core import Metric
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead
from prometheus_client.registry import Collector
from prometheus_client.samples import Sample

from serving.contract.model import Classifier
from serving.inference.reload import Outcome

CONFIDENCE_BUCKETS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 1.0)
SECONDS_BUCKETS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0)
BATCH_BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128)


class Metrics:
    """The process's only set of metrics; it outlives models.

    Make it once, and only where PROMETHEUS_MULTIPROC_DIR is set: inside a worker.
    """

    def __init__(self, registry: CollectorRegistry = REGISTRY) -> None:
        if "PROMETHEUS_MULTIPROC_DIR" in os.environ:
            # A worker never forks, so the system need not be asked for its number ten times a request.
            pid = os.getpid()
            values.ValueClass = values.MultiProcessValue(lambda: pid)  # type: ignore[no-untyped-call]
        self._predictions = Counter(
            "twinlens_predictions", "Images answered, by predicted label.", ["label"], registry=registry
        )
        # Children made once: looking one up by its labels costs more than the increment.
        self._predictions_of: dict[str, Counter] = {}
        self._confidence = Histogram(
            "twinlens_confidence", "Probability of the predicted label.", buckets=CONFIDENCE_BUCKETS, registry=registry
        )
        self._abstentions = Counter(
            "twinlens_abstentions",
            "Images answered with too little confidence: for a person to decide.",
            registry=registry,
        )
        self._rejected = Counter(
            "twinlens_rejected_inputs", "Inputs refused, by the code of the error.", ["reason"], registry=registry
        )
        self._explanations = Counter("twinlens_explanations", "Images explained.", registry=registry)
        stage = Histogram(
            "twinlens_stage_seconds",
            "Seconds in each stage: decode and queue of an image, infer of a batch.",
            ["stage"],
            buckets=SECONDS_BUCKETS,
            registry=registry,
        )
        self._decode, self._queue, self._infer = (stage.labels(name) for name in ("decode", "queue", "infer"))
        self._batch = Histogram(
            "twinlens_batch_size", "Images a run of the model.", buckets=BATCH_BUCKETS, registry=registry
        )
        self._requests = Counter(
            "twinlens_requests", "Requests answered, by route and status.", ["route", "status"], registry=registry
        )
        self._requests_of: dict[tuple[str, int], Counter] = {}
        self._seconds = Histogram(
            "twinlens_request_seconds",
            "Seconds from a request's headers to the end of its answer, by route.",
            ["route"],
            buckets=SECONDS_BUCKETS,
            registry=registry,
        )
        self._seconds_of: dict[str, Histogram] = {}
        self._in_flight = Gauge(
            "twinlens_images_in_flight",
            "Images that have come in and are not answered yet.",
            multiprocess_mode="livesum",
            registry=registry,
        )
        self._info = Gauge(
            "twinlens_model_info",
            "1 for the model that answers; the labels say which and on what.",
            ["name", "version", "digest", "provider"],
            multiprocess_mode="livemax",
            registry=registry,
        )
        self._serving: Gauge | None = None
        self._loaded = Gauge(
            "twinlens_model_loaded_timestamp_seconds",
            "When the model that answers was loaded, in seconds since 1970; of the worker that was the first.",
            multiprocess_mode="livemin",
            registry=registry,
        )
        self._drift = Gauge(
            "twinlens_drift_psi",
            "Population stability index of the last images against the test split, in the worker where it is largest.",
            ["feature"],
            multiprocess_mode="livemax",
            registry=registry,
        )
        self._drift_of: dict[str, Gauge] = {}
        reloads = Counter(
            "twinlens_reloads",
            "Attempts to load a changed model file, by how they ended.",
            ["outcome"],
            registry=registry,
        )
        self._reloads = {outcome: reloads.labels(outcome) for outcome in get_args(Outcome)}

    def serves(self, classifier: Classifier) -> None:
        """From now on this model answers; the one before it, if any, does not."""
        card = classifier.card
        for label in card.classes:
            self._predictions_of.setdefault(label, self._predictions.labels(label))
        if self._serving is not None:
            self._serving.set(0)
        self._serving = self._info.labels(card.name, card.version, classifier.digest, classifier.provider)
        self._serving.set(1)
        self._loaded.set_to_current_time()
        for gauge in self._drift_of.values():
            gauge.set(math.nan)  # what it said was of another model's images; a series cannot be taken back

    def drifted(self, stability: Mapping[str, float]) -> None:
        """How far each of these features is from the reference now."""
        for feature, value in stability.items():
            # Made when there is something to say: until then the feature is absent.
            self._drift_of.setdefault(feature, self._drift.labels(feature)).set(value)

    def reloaded(self, outcome: Outcome) -> None:
        """The model file had changed, and an attempt to load it has ended."""
        self._reloads[outcome].inc()

    def inside(self, images: int) -> None:
        """So many images have come in and are not answered yet."""
        self._in_flight.set(images)

    def decoded(self, seconds: float) -> None:
        """An image has been decoded and resized."""
        self._decode.observe(seconds)

    def ran(self, waited: Sequence[float], took: float, images: int) -> None:
        """A batch of so many images has been answered: the seconds each prediction waited, and those the model took."""
        self._batch.observe(images)
        self._infer.observe(took)
        for seconds in waited:
            self._queue.observe(seconds)

    def predicted(self, label: str, confidence: float, *, abstained: bool) -> None:
        """An answer has been given; `abstained` when it is one for a person to decide."""
        self._predictions_of[label].inc()
        self._confidence.observe(confidence)
        if abstained:
            self._abstentions.inc()

    def explained(self) -> None:
        """An image has been explained."""
        self._explanations.inc()

    def answered(self, route: str, status: int, seconds: float) -> None:
        """A request has been answered; `route` is one of the service's own, so that nobody can make up series."""
        counter = self._requests_of.get((route, status))
        if counter is None:
            counter = self._requests_of[route, status] = self._requests.labels(route, str(status))
            self._seconds_of[route] = self._seconds.labels(route)
        counter.inc()
        self._seconds_of[route].observe(seconds)

    def rejected(self, reason: str) -> None:
        """An input has been refused with this error code."""
        self._rejected.labels(reason).inc()


def exposition() -> bytes:
    """The metrics of all workers in Prometheus's text format; a model that has been replaced is left out."""
    registry = CollectorRegistry()
    registry.register(_Workers())
    return generate_latest(registry)


def forget_dead_workers() -> None:
    """Gauges of workers that have ended without saying so are no longer true."""
    for path in Path(os.environ["PROMETHEUS_MULTIPROC_DIR"]).glob("gauge_live*.db"):
        pid = path.stem.rsplit("_", 1)[1]
        if not Path("/proc", pid).exists():
            mark_process_dead(pid)  # type: ignore[no-untyped-call]


def remove_files() -> None:
    """Leave nothing of this process behind; only at the end of the service, since its counts go with its files."""
    for path in Path(os.environ["PROMETHEUS_MULTIPROC_DIR"]).glob(f"*_{os.getpid()}.db"):
        path.unlink()


class _Workers(Collector):
    def collect(self) -> Iterator[Metric]:
        for family in MultiProcessCollector(None).collect():  # type: ignore[no-untyped-call]
            if family.name == "twinlens_model_info":
                family.samples = [sample for sample in family.samples if sample.value]
            if family.type == "histogram":
                family.samples.sort(key=_as_the_format_asks)
            yield family


def _as_the_format_asks(sample: Sample) -> tuple[list[tuple[str, str]], bool, float]:
    """Buckets of one histogram together, in ascending order, before its count and sum."""
    labels = dict(sample.labels)
    bucket = labels.pop("le", None)
    return sorted(labels.items()), bucket is None, float(bucket or 0)
