"""The Prometheus metrics: requests answered and refused, predictions, times, and the state of the model."""

import math
import os
from collections.abc import Mapping, Sequence
from typing import Literal, get_args

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge, Histogram, values

from serving.contract.card.model_card import ModelCard
from serving.contract.drift import Feature
from serving.contract.model import Classifier

CONFIDENCE_BUCKETS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 1.0)
SECONDS_BUCKETS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0)
BATCH_BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128)
DECISIONS = {True: "yes", False: "no"}
"""The values of the label `decision`."""
NO_WORK = frozenset({401, 404, 405, 408, 421, 429, 503})
"""Statuses of requests that were refused at once, or whose body never arrived. Under overload the microseconds of the
first would hide how long others wait; the seconds of the second are the client's."""
NOT_MEASURED = -math.inf
"""Drift before any image was measured. It is less than every other worker's value, so the largest one is not hidden;
NaN, read first, would hide all others."""

ReloadOutcome = Literal["swapped", "unchanged", "refused", "failed", "missing"]
FetchOutcome = Literal["fetched", "unchanged", "missing", "failed"]


class RequestMetrics:
    """Requests and inputs: how many were answered or rejected, how long they took, how many images are in flight."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._rejected = Counter(
            "twinlens_rejected_inputs",
            "Inputs refused for what they are, by the code of the error.",
            ["reason"],
            registry=registry,
        )
        self._rejected.labels("model_output_invalid")  # from zero on: an alert looks at its increase
        self._requests = Counter(
            "twinlens_requests", "Requests answered, by route and status.", ["route", "status"], registry=registry
        )
        self._seconds = Histogram(
            "twinlens_request_seconds",
            "Seconds from the end of a request's body to that of its answer, by route, unless refused before any work.",
            ["route"],
            buckets=SECONDS_BUCKETS,
            registry=registry,
        )
        self._in_flight = Gauge(
            "twinlens_images_in_flight",
            "Images that have come in and are not answered yet, without those to explain.",
            multiprocess_mode="livesum",
            registry=registry,
        )
        # Children are kept here: the library's look-up by labels costs more than the increment.
        self._requests_by_route: dict[tuple[str, int], Counter] = {}
        self._seconds_by_route: dict[str, Histogram] = {}

    def answered(self, route: str, status: int, seconds: float) -> None:
        """Count an answered request, and observe its time if there was work for it.

        `route` is a name from the route table, so that no caller can add series.
        """
        counter = self._requests_by_route.get((route, status))
        if counter is None:
            counter = self._requests_by_route[route, status] = self._requests.labels(route, str(status))
        counter.inc()
        if status in NO_WORK:
            return
        histogram = self._seconds_by_route.get(route)
        if histogram is None:
            histogram = self._seconds_by_route[route] = self._seconds.labels(route)
        histogram.observe(seconds)

    def rejected(self, reason: str) -> None:
        """Count an input that was refused with this error code."""
        self._rejected.labels(reason).inc()

    def set_images_in_flight(self, images: int) -> None:
        """Set the number of images that have come in and are not answered yet, without those to explain."""
        self._in_flight.set(images)


class InferenceMetrics:
    """Predictions and explanations: their labels, their confidence, and the time of each stage."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._predictions = Counter(
            "twinlens_predictions", "Images answered, by predicted label.", ["label"], registry=registry
        )
        self._predictions_by_label: dict[str, Counter] = {}
        self._confidence = Histogram(
            "twinlens_confidence", "Probability of the predicted label.", buckets=CONFIDENCE_BUCKETS, registry=registry
        )
        self._abstentions = Counter(
            "twinlens_abstentions",
            "Images answered with too little confidence: for a person to decide.",
            registry=registry,
        )
        self._decisions = Counter(
            "twinlens_decisions",
            "Decisions by the operating points of the model card, for or against a class.",
            ["label", "decision"],
            registry=registry,
        )
        self._least_cost = Counter(
            "twinlens_least_cost",
            "Answers of the least expected cost by the costs of the model card: a class or another action.",
            ["action"],
            registry=registry,
        )
        self._unfamiliar = Counter(
            "twinlens_unfamiliar", "Images answered that are unlike those of the training.", registry=registry
        )
        self._explanations = Counter("twinlens_explanations", "Images explained.", registry=registry)
        self._similar = Counter(
            "twinlens_similar", "Images answered with the nearest training images.", registry=registry
        )
        stage = Histogram(
            "twinlens_stage_seconds",
            "Seconds in each stage: decode and queue of an image, infer of a batch, search among training images.",
            ["stage"],
            buckets=SECONDS_BUCKETS,
            registry=registry,
        )
        self._decode, self._queue, self._infer, self._search = (
            stage.labels(name) for name in ("decode", "queue", "infer", "search")
        )
        self._batch = Histogram(
            "twinlens_batch_size", "Images a run of the model.", buckets=BATCH_BUCKETS, registry=registry
        )

    def expect(self, card: ModelCard) -> None:
        """Export a count, at first 0, for each label that the model can predict and for each decision."""
        for label in card.classes:
            self._predictions_by_label.setdefault(label, self._predictions.labels(label))
        for point in card.operating_points:
            for decision in DECISIONS.values():
                self._decisions.labels(point.label, decision)
        for action in card.costs.actions if card.costs else ():
            self._least_cost.labels(action)

    def decoded(self, seconds: float) -> None:
        """Record the time in which an image was decoded and resized."""
        self._decode.observe(seconds)

    def ran(self, waited: Sequence[float], took: float, images: int) -> None:
        """Record a batch: the seconds that each prediction waited, the seconds of the model, the number of images."""
        self._batch.observe(images)
        self._infer.observe(took)
        for seconds in waited:
            self._queue.observe(seconds)

    def predicted(self, label: str, confidence: float, *, abstained: bool) -> None:
        """Count a prediction; `abstained` when a person should decide. `expect` has had the label before."""
        self._predictions_by_label[label].inc()
        self._confidence.observe(confidence)
        if abstained:
            self._abstentions.inc()

    def decided(self, decisions: Mapping[str, bool], least_cost: str | None) -> None:
        """Count the decisions on one image, by class, and its answer of the least cost."""
        if least_cost is not None:
            self._least_cost.labels(least_cost).inc()
        for label, decision in decisions.items():
            self._decisions.labels(label, DECISIONS[decision]).inc()

    def unfamiliar(self) -> None:
        """Count an answered image that is unlike those of the training."""
        self._unfamiliar.inc()

    def explained(self) -> None:
        """Count an explained image."""
        self._explanations.inc()

    def searched(self, seconds: float) -> None:
        """Count an image whose nearest training images were answered, and record the time of their search."""
        self._similar.inc()
        self._search.observe(seconds)


class ModelMetrics:
    """The model: which one answers, since when, how far its images drifted, how reloads ended."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._info = Gauge(
            "twinlens_model_info",
            "1 for the model that answers; the labels say which and on what.",
            ["name", "version", "digest", "provider"],
            multiprocess_mode="livemax",
            registry=registry,
        )
        self._current: Gauge | None = None
        self._classifier: Classifier | None = None
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
        self._drift_by_feature: dict[str, Gauge] = {}
        self._drift_limit = Gauge(
            "twinlens_drift_limit",
            "Population stability index above which a feature has drifted.",
            ["feature"],
            multiprocess_mode="livemax",
            registry=registry,
        )
        reloads = Counter(
            "twinlens_reloads",
            "Attempts to load a changed model file, by how they ended.",
            ["outcome"],
            registry=registry,
        )
        self._reloads = {outcome: reloads.labels(outcome) for outcome in get_args(ReloadOutcome)}
        self._refused = Gauge(
            "twinlens_model_refused",
            "1 while the model's file was refused, could not be loaded or is gone: another model answers, or none.",
            multiprocess_mode="livemax",
            registry=registry,
        )
        fetches = Counter(
            "twinlens_fetches",
            "Looks at the object of a model that is in an object store, by how they ended.",
            ["outcome"],
            registry=registry,
        )
        self._fetches = {outcome: fetches.labels(outcome) for outcome in get_args(FetchOutcome)}

    def replace(self, classifier: Classifier) -> None:
        """Export this model as the one that answers, in place of the one before it."""
        if self._current is not None:
            self._current.set(0)
        card, self._classifier = classifier.card, classifier
        self._current = self._info.labels(card.name, card.version, classifier.digest, classifier.provider)
        self._current.set(1)
        self._loaded.set_to_current_time()
        for gauge in self._drift_by_feature.values():
            gauge.set(NOT_MEASURED)  # the value was of another model's images, and a series cannot be removed

    def drifted(self, classifier: Classifier, stability: Mapping[str, float]) -> None:
        """Set the distance of each of these features from the reference, if this model is the one that answers.

        Requests that were under way at a reload are answered, and counted in a window, by the model before.
        """
        if classifier is not self._classifier:
            return
        for feature, value in stability.items():
            # A child is made with its first value: until then the feature is absent.
            self._drift_by_feature.setdefault(feature, self._drift.labels(feature)).set(value)

    def limit_drift(self, limits: Mapping[Feature, float]) -> None:
        """Export the index above which each of these features has drifted."""
        for feature, limit in limits.items():
            self._drift_limit.labels(feature).set(limit)

    def reloaded(self, outcome: ReloadOutcome) -> None:
        """Count an attempt to load a changed model file, and export whether it failed."""
        self._reloads[outcome].inc()
        self._refused.set(outcome in ("refused", "failed", "missing"))

    def polled(self, outcome: FetchOutcome) -> None:
        """Count a poll of the object of the model."""
        self._fetches[outcome].inc()


class Metrics:
    """The process's only set of metrics; it outlives models.

    Make it once, and only where PROMETHEUS_MULTIPROC_DIR is set: inside a worker.
    """

    def __init__(self, registry: CollectorRegistry = REGISTRY) -> None:
        if "PROMETHEUS_MULTIPROC_DIR" in os.environ:
            # A worker never forks, so its process id is read once instead of ten times a request.
            pid = os.getpid()
            values.ValueClass = values.MultiProcessValue(lambda: pid)  # type: ignore[no-untyped-call]
        self.requests = RequestMetrics(registry)
        self.inference = InferenceMetrics(registry)
        self.model = ModelMetrics(registry)

    def serves(self, classifier: Classifier) -> None:
        """Record that this model answers from now on, in place of the one before it."""
        self.inference.expect(classifier.card)
        self.model.replace(classifier)
