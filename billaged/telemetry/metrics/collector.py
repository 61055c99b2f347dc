"""From what is read of the daemon to what the client library writes."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from itertools import chain
from typing import NamedTuple

from prometheus_client import ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from billaged.telemetry.metrics.catalog import METRICS, Metric
from billaged.telemetry.metrics.histogram import Counted


class Reading(NamedTuple):
    """One value of a metric; ``labels`` are the values of the metric's labels, in their order."""

    metric: Metric
    value: float | Counted
    labels: tuple[str, ...] = ()


class DaemonCollector(Collector):
    """Every metric of the catalog, with the values of the moment of ``collect``, and the process's own.

    A metric without values is there all the same, so that what exists can be looked up.
    """

    def __init__(self, read: Callable[[], Iterable[Reading]]) -> None:
        """``read`` is called for each collect, on the thread of whoever asks."""
        self._read = read
        # None: it is our own to collect from, and in no registry of the library's.
        self._process = ProcessCollector(registry=None)

    def collect(self) -> Iterable[Family]:
        by_name: dict[str, list[Reading]] = defaultdict(list)
        for reading in self._read():
            by_name[reading.metric.name].append(reading)
        own = [_family(metric, by_name.get(metric.name, ())) for metric in METRICS]
        return chain(own, self._process.collect())


def _family(metric: Metric, readings: Sequence[Reading]) -> Family:
    # The same metric may have other labels than the catalog's, where labels are a setting.
    labels = readings[0].metric.labels if readings else metric.labels
    if metric.type == "histogram":
        histogram = HistogramMetricFamily(metric.name, metric.help, labels=labels)
        for reading in readings:
            counted = _counted(reading)
            names = [*map(floatToGoString, counted.bounds), "+Inf"]
            histogram.add_metric(reading.labels, list(zip(names, counted.up_to, strict=True)), counted.sum)
        return histogram
    kind = CounterMetricFamily if metric.type == "counter" else GaugeMetricFamily
    family = kind(metric.name, metric.help, labels=labels)
    for reading in readings:
        family.add_metric(reading.labels, _number(reading))
    return family


def _counted(reading: Reading) -> Counted:
    if not isinstance(reading.value, Counted):
        raise TypeError(f"{reading.metric.name} is a histogram: {reading.value!r} is none")
    return reading.value


def _number(reading: Reading) -> float:
    if isinstance(reading.value, Counted):
        raise TypeError(f"{reading.metric.name} is no histogram")
    return reading.value
