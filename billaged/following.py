"""Following requests through the stages, for OpenTelemetry. Part of the composition root."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from billaged import __version__
from billaged.aggregator.changes import LedgerChanges
from billaged.aggregator.worker import FoldObserver
from billaged.doors.ports import Tracer
from billaged.intake.service import Follower
from billaged.settings import Otel
from billaged.settings.kinds import Endpoint
from billaged.telemetry.opening import OpenTelemetry, Target
from billaged.telemetry.tracing import Tracing

if TYPE_CHECKING:
    from billaged.telemetry.metrics.collector import DaemonCollector


class Following:
    """What the stages are given to be followed with. Where OpenTelemetry is off that is nothing at all."""

    def __init__(self, settings: Otel) -> None:
        """
        Raises:
            StartError: OpenTelemetry is on, and not installed.
        """
        self._sending: OpenTelemetry | None = None
        self.grpc: Tracer | None = None
        self.connect: Tracer | None = None
        self.intake: Follower | None = None
        if settings.enabled:
            self._sending = OpenTelemetry(
                Target(
                    Endpoint.url(settings.endpoint),
                    settings.service_name,
                    settings.service_version or __version__,
                    float(settings.sampling_rate),
                )
            )
            tracing = self._sending.tracing
            self.grpc, self.connect, self.intake = tracing.grpc(), tracing.connect(), tracing

    def fold(self, observer: FoldObserver) -> FoldObserver:
        """The observer, and who follows requests beside it."""
        return observer if self._sending is None else _Both(observer, self._sending.tracing)

    def start(self, collector: DaemonCollector) -> None:
        """Begin to send traces, and the metrics that are collected there."""
        if self._sending is not None:
            self._sending.start(collector)

    def stop(self, within_seconds: float) -> None:
        """Send what is left, as far as it can be sent in that time. Blocks."""
        if self._sending is not None:
            self._sending.stop(within_seconds)

    def spans(self) -> Mapping[str, int]:
        """Spans by what became of them."""
        return {} if self._sending is None else self._sending.spans


class _Both:
    """A ``FoldObserver``."""

    def __init__(self, observer: FoldObserver, tracing: Tracing) -> None:
        self._observer = observer
        self._tracing = tracing

    def folded(self, entries: int, seconds: float) -> None:
        self._tracing.folded(entries, seconds)
        self._observer.folded(entries, seconds)

    def flushed(self, changes: LedgerChanges, seconds: float) -> None:
        self._observer.flushed(changes, seconds)
