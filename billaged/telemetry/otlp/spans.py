"""From traces to OpenTelemetry's spans: one for a request, and children for its wait for the journal and its fold.

The times are all known when a span is made, so it is made by the thread that sends, only of what is sent.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Final

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExportResult
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import SpanContext, SpanKind, Status, StatusCode, TraceFlags
from opentelemetry.util.types import AttributeValue

from billaged.telemetry.traces import Trace
from billaged.telemetry.tracing import Folded, Tracing

_SAMPLED: Final = TraceFlags(TraceFlags.SAMPLED)
_NAMES: Final = (
    "OK", "CANCELLED", "UNKNOWN", "INVALID_ARGUMENT", "DEADLINE_EXCEEDED", "NOT_FOUND", "ALREADY_EXISTS",
    "PERMISSION_DENIED", "RESOURCE_EXHAUSTED", "FAILED_PRECONDITION", "ABORTED", "OUT_OF_RANGE", "UNIMPLEMENTED",
    "INTERNAL", "UNAVAILABLE", "DATA_LOSS", "UNAUTHENTICATED",
)  # fmt: skip
_NUMBERS: Final = {name: number for number, name in enumerate(_NAMES)}
# By OpenTelemetry's conventions a server's span is an error only where the server is at fault.
_FAULTS: Final = frozenset({"UNKNOWN", "DEADLINE_EXCEEDED", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS"})
_UNSET: Final = Status(StatusCode.UNSET)
# As Connect spells it.
_CANCELED: Final = "canceled"

_ids: Final = random.Random()


class SpanSender:
    """``send`` for a ``Sender``. Counts spans; any thread may read."""

    def __init__(self, tracing: Tracing, exporter: OTLPSpanExporter, resource: Resource, version: str) -> None:
        self._tracing = tracing
        self._exporter = exporter
        self._resource = resource
        self._scope = InstrumentationScope("billaged", version)
        self.sent = 0
        self.failed = 0  # the collector did not take them, or was not there

    def send(self) -> bool | None:
        """Send one batch."""
        ended = self._tracing.take()
        if not ended:
            return None
        spans = [span for one in ended for span in self._spans(one)]
        taken = self._exporter.export(spans) is SpanExportResult.SUCCESS
        if taken:
            self.sent += len(spans)
        else:
            self.failed += len(spans)
        return taken

    def _spans(self, ended: Trace | Folded) -> Iterator[ReadableSpan]:
        if isinstance(ended, Folded):
            records: dict[str, AttributeValue] = {"billaged.fold.records": ended.records}
            yield self._child("fold", ended.trace, ended.began_ns, ended.ended_ns, records)
            return
        yield self._request(ended)
        if ended.handed_over_ns:
            # Without a word of the journal it waited to its end.
            yield self._child("journal wait", ended, ended.handed_over_ns, ended.durable_ns or ended.ended_ns)

    def _request(self, trace: Trace) -> ReadableSpan:
        method, code = trace.method, trace.code
        attributes: dict[str, AttributeValue] = dict(method.attributes)
        if method.attributes["rpc.system"] == "grpc":
            attributes[method.status_attribute] = _NUMBERS.get(code, _NUMBERS["UNKNOWN"])
        elif code != "OK":
            attributes[method.status_attribute] = _CANCELED if code == "CANCELLED" else code.lower()
        if trace.caller:
            attributes["billaged.caller"] = trace.caller
        context = SpanContext(trace.trace_id, trace.span_id, is_remote=False, trace_flags=_SAMPLED)
        parent = None
        if trace.parent_id:
            parent = SpanContext(trace.trace_id, trace.parent_id, is_remote=True, trace_flags=_SAMPLED)
        return ReadableSpan(
            name=method.name,
            context=context,
            parent=parent,
            resource=self._resource,
            attributes=attributes,
            kind=SpanKind.SERVER,
            status=Status(StatusCode.ERROR, code) if code in _FAULTS else _UNSET,
            start_time=trace.began_wall_ns,
            end_time=trace.wall_ns(trace.ended_ns),
            instrumentation_scope=self._scope,
        )

    def _child(
        self, name: str, trace: Trace, began_ns: int, ended_ns: int, attributes: dict[str, AttributeValue] | None = None
    ) -> ReadableSpan:
        return ReadableSpan(
            name=name,
            context=SpanContext(trace.trace_id, _ids.getrandbits(64) or 1, is_remote=False, trace_flags=_SAMPLED),
            parent=SpanContext(trace.trace_id, trace.span_id, is_remote=False, trace_flags=_SAMPLED),
            resource=self._resource,
            attributes=attributes or {},
            kind=SpanKind.INTERNAL,
            status=_UNSET,
            start_time=trace.wall_ns(began_ns),
            end_time=trace.wall_ns(ended_ns),
            instrumentation_scope=self._scope,
        )
