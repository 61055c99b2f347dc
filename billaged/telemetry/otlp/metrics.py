"""The numbers of ``/metrics`` as OTLP: the same collector is read, and names and labels stay as they are."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator
from itertools import pairwise
from typing import Any, Final

from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.sdk.metrics.export import (
    AggregationTemporality,
    Gauge,
    Histogram,
    HistogramDataPoint,
    Metric,
    MetricExportResult,
    MetricsData,
    NumberDataPoint,
    ResourceMetrics,
    ScopeMetrics,
    Sum,
)
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.registry import Collector
from prometheus_client.samples import Sample

_CUMULATIVE: Final = AggregationTemporality.CUMULATIVE
_NOT_KEPT: Final[Any] = None
_UNITS: Final = {"_seconds": "s", "_bytes": "By"}

Labels = tuple[tuple[str, str], ...]


class MetricSender:
    """``send`` for a ``Sender``. Any thread may read ``failed``."""

    def __init__(self, collector: Collector, exporter: OTLPMetricExporter, resource: Resource, version: str) -> None:
        self._collector = collector
        self._exporter = exporter
        self._resource = resource
        self._scope = InstrumentationScope("billaged", version)
        self._began_ns = time.time_ns()
        self.failed = 0  # times that the collector did not take them, or was not there

    def send(self) -> bool:
        """Read all metrics of this moment and send them."""
        metrics = list(metrics_of(self._collector.collect(), self._began_ns, time.time_ns()))
        scope = ScopeMetrics(self._scope, metrics, "")
        taken = self._exporter.export(MetricsData([ResourceMetrics(self._resource, [scope], "")]))
        if taken is MetricExportResult.SUCCESS:
            return True
        self.failed += 1
        return False


def metrics_of(families: Iterable[Family], began_ns: int, now_ns: int) -> Iterator[Metric]:
    """OpenTelemetry's metrics of Prometheus's. Counters count from ``began_ns`` on; a metric without values is none."""
    for family in families:
        if not family.samples:
            continue
        data: Sum | Gauge | Histogram
        if family.type == "histogram":
            name, data = family.name, Histogram(list(_histograms(family.samples, began_ns, now_ns)), _CUMULATIVE)
        else:
            # As Prometheus has it: a counter's samples have the _total that its family's name lacks.
            name = family.samples[0].name
            points = [
                NumberDataPoint(sample.labels, began_ns, now_ns, float(sample.value))
                for sample in family.samples
                if sample.name == name
            ]
            data = Sum(points, _CUMULATIVE, is_monotonic=True) if family.type == "counter" else Gauge(points)
        unit = next((unit for suffix, unit in _UNITS.items() if family.name.endswith(suffix)), "")
        yield Metric(name, family.documentation, unit, data)


def _histograms(samples: Iterable[Sample], began_ns: int, now_ns: int) -> Iterator[HistogramDataPoint]:
    """A point for each set of labels; Prometheus counts up to each bound, OTLP between two."""
    up_to: dict[Labels, dict[float, float]] = {}
    sums: dict[Labels, float] = {}
    for sample in samples:
        labels = {name: value for name, value in sample.labels.items() if name != "le"}
        key = tuple(labels.items())
        if sample.name.endswith("_bucket"):
            up_to.setdefault(key, {})[float(sample.labels["le"])] = sample.value
        elif sample.name.endswith("_sum"):
            sums[key] = sample.value
    for key, counts in up_to.items():
        bounds = sorted(counts)
        below = [0.0, *(counts[bound] for bound in bounds)]
        between = [round(above - under) for under, above in pairwise(below)]
        yield HistogramDataPoint(
            attributes=dict(key),
            start_time_unix_nano=began_ns,
            time_unix_nano=now_ns,
            count=sum(between),
            sum=sums.get(key, 0.0),
            bucket_counts=between,
            explicit_bounds=[bound for bound in bounds if not math.isinf(bound)],
            # Nobody has kept them; the encoder leaves out what is None.
            min=_NOT_KEPT,
            max=_NOT_KEPT,
        )
