"""The Prometheus metrics that BentoML does not already have: what was answered, what was refused, where time went."""

import math
from collections.abc import Mapping, Sequence
from typing import get_args

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge, Histogram

from serving.model import Classifier
from serving.reload import Outcome

CONFIDENCE_BUCKETS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 1.0)
SECONDS_BUCKETS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0)
BATCH_BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128)


class Metrics:
    """The process's only set of metrics; it outlives models.

    Make it once, and only where PROMETHEUS_MULTIPROC_DIR is set: inside a worker.
    """

    def __init__(self, registry: CollectorRegistry = REGISTRY) -> None:
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
        self._info = Gauge(
            "twinlens_model_info",
            "1 for the model that answers, 0 for one that has been replaced; the labels say which and on what.",
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

    def rejected(self, reason: str) -> None:
        """An input has been refused with this error code."""
        self._rejected.labels(reason).inc()
