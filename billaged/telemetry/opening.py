"""OpenTelemetry as a whole: whether it can be used here, what follows requests, who sends."""

from __future__ import annotations

import importlib.util
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from billaged.model.errors import StartError
from billaged.telemetry.tracing import Tracing

if TYPE_CHECKING:
    from prometheus_client.registry import Collector

    from billaged.telemetry.otlp.metrics import MetricSender
    from billaged.telemetry.otlp.sender import Sender
    from billaged.telemetry.otlp.spans import SpanSender

_NEEDED: Final = ("opentelemetry.sdk", "opentelemetry.exporter.otlp.proto.http")
# How long one attempt to reach the collector goes on; the next ones wait for it.
_EXPORT_SECONDS: Final = 5.0
_SPANS_SECONDS: Final = 1.0
_METRICS_SECONDS: Final = 15.0


@dataclass(frozen=True)
class Target:
    """Where it goes, and as whose. ``url`` has no slash at its end."""

    url: str
    service_name: str
    service_version: str
    sampling_rate: float


class OpenTelemetry:
    """Made before the doors, which are given ``tracing``; started and stopped with the daemon."""

    def __init__(self, target: Target) -> None:
        """
        Raises:
            StartError: its libraries are not installed.
        """
        if missing := [name for name in _NEEDED if not _installed(name)]:
            raise StartError(
                f"UNKEY_BILLAGED_OTEL_ENABLED is set, but {' and '.join(missing)} cannot be imported.",
                "Install its extra: pip install 'billaged[otel]'. Or unset it: /metrics is served without.",
            )
        self._target = target
        self.tracing = Tracing(target.sampling_rate)
        self._senders: tuple[Sender, ...] = ()
        self._spans: SpanSender | None = None
        self._metrics: MetricSender | None = None

    def start(self, collector: Collector) -> None:
        """Begin to send; ``collector`` reads the metrics, on a thread of its own."""
        # Seldom used, and slow to import.
        from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource

        from billaged.telemetry.otlp.metrics import MetricSender
        from billaged.telemetry.otlp.reason import Reason
        from billaged.telemetry.otlp.sender import Sender
        from billaged.telemetry.otlp.session import CollectorSession
        from billaged.telemetry.otlp.spans import SpanSender

        target = self._target
        about = {"service.name": target.service_name, "service.version": target.service_version}
        resource = Resource.create(about)
        spans_url, metrics_url = f"{target.url}/v1/traces", f"{target.url}/v1/metrics"
        span_exporter = OTLPSpanExporter(spans_url, timeout=_EXPORT_SECONDS, session=CollectorSession())
        metric_exporter = OTLPMetricExporter(metrics_url, timeout=_EXPORT_SECONDS, session=CollectorSession())
        self._spans = SpanSender(self.tracing, span_exporter, resource, target.service_version)
        self._metrics = MetricSender(collector, metric_exporter, resource, target.service_version)
        self._senders = (
            Sender(
                "spans",
                self._spans.send,
                lambda: bool(self.tracing.ended),
                span_exporter.shutdown,
                Reason(span_exporter),
                spans_url,
                self.tracing.wake,
                _SPANS_SECONDS,
            ),
            Sender(
                "metrics",
                self._metrics.send,
                lambda: False,
                metric_exporter.shutdown,
                Reason(metric_exporter),
                metrics_url,
                threading.Event(),
                _METRICS_SECONDS,
            ),
        )
        for sender in self._senders:
            sender.start()

    def stop(self, within_seconds: float) -> None:
        """Send what is left; what cannot be sent in time is given up."""
        until_seconds = time.monotonic() + within_seconds
        for sender in self._senders:
            sender.ask_to_stop(until_seconds)
        for sender in self._senders:
            sender.join()

    # --- for operators ---------------------------------------------------------------

    @property
    def spans(self) -> dict[str, int]:
        """Spans by what became of them."""
        sent, failed = (0, 0) if self._spans is None else (self._spans.sent, self._spans.failed)
        return {"sent": sent, "failed": failed, "dropped": self.tracing.dropped}


def _installed(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:
        # A parent of it is missing.
        return False
