"""The metrics of all workers in Prometheus's text format, from the files that they share."""

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead
from prometheus_client.registry import Collector
from prometheus_client.samples import Sample

from serving.metrics import NOT_MEASURED


def exposition() -> bytes:
    """The metrics of all workers in Prometheus's text format; no model that was replaced, no drift not measured."""
    registry = CollectorRegistry()
    registry.register(_Workers())
    return generate_latest(registry)


def forget_dead_workers() -> None:
    """Remove the gauges of workers that were killed: such a worker could not remove its own."""
    for path in Path(os.environ["PROMETHEUS_MULTIPROC_DIR"]).glob("gauge_live*.db"):
        pid = path.stem.rsplit("_", 1)[1]
        if not psutil.pid_exists(int(pid)):
            with suppress(FileNotFoundError):  # another worker removed it meanwhile
                mark_process_dead(pid)  # type: ignore[no-untyped-call]


def forget_this_worker() -> None:
    """Remove the gauges of this process, which ends.

    Its counts stay: without them the sum would be smaller, while another worker still answers, and Prometheus would
    take that for a restart. BentoML empties the folder at the next start.
    """
    mark_process_dead(os.getpid())  # type: ignore[no-untyped-call]


class _Workers(Collector):
    def collect(self) -> Iterator[Metric]:
        for family in MultiProcessCollector(None).collect():  # type: ignore[no-untyped-call]
            if family.name == "twinlens_model_info":
                family.samples = [sample for sample in family.samples if sample.value]
            if family.name == "twinlens_drift_psi":
                family.samples = [sample for sample in family.samples if sample.value != NOT_MEASURED]
            if family.type == "histogram":
                family.samples.sort(key=_by_labels_and_bucket)
            yield family


def _by_labels_and_bucket(sample: Sample) -> tuple[list[tuple[str, str]], bool, float]:
    """The order that the text format asks for: one histogram's buckets, ascending, before its count and sum."""
    labels = dict(sample.labels)
    bucket = labels.pop("le", None)
    return sorted(labels.items()), bucket is None, float(bucket or 0)
