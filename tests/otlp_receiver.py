"""A collector for tests: takes OTLP over HTTP, decodes it with OpenTelemetry's own messages, keeps it."""

from __future__ import annotations

import gzip
import threading
from collections.abc import Iterable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, NamedTuple, Self

from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsServiceRequest,
    ExportMetricsServiceResponse,
)
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.common.v1.common_pb2 import KeyValue
from opentelemetry.proto.metrics.v1.metrics_pb2 import Metric


def plain(attributes: Iterable[KeyValue]) -> dict[str, Any]:
    """Attributes as a dict of their values."""
    return {item.key: getattr(item.value, str(item.value.WhichOneof("value"))) for item in attributes}


class Span(NamedTuple):
    """A span as it came; ids in hexadecimal digits, ``parent`` empty for none."""

    name: str
    trace: str
    id: str
    parent: str
    kind: int
    attributes: dict[str, Any]
    status: int
    began_ns: int
    ended_ns: int
    resource: dict[str, Any]


class OtlpReceiver:
    """Listens on loopback from its making to its exit. ``hold`` set to an event: answers wait for it."""

    def __init__(self, status: int = 200) -> None:
        self.status = status
        self.hold: threading.Event | None = None
        self.requests = 0
        self.headers: list[dict[str, str]] = []
        self.spans: list[Span] = []
        self.metrics: dict[str, Metric] = {}
        self.metrics_resource: dict[str, Any] = {}
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                receiver.requests += 1
                receiver.headers.append(dict(self.headers.items()))
                if receiver.hold is not None:
                    receiver.hold.wait()
                answer = b""
                if receiver.status == 200:
                    if self.headers.get("Content-Encoding") == "gzip":
                        body = gzip.decompress(body)
                    answer = receiver.take(self.path, body)
                try:
                    self.send_response(receiver.status)
                    self.send_header("Content-Type", "application/x-protobuf")
                    self.send_header("Content-Length", str(len(answer)))
                    self.end_headers()
                    self.wfile.write(answer)
                except OSError:
                    # Who waited too long for the answer has gone.
                    self.close_connection = True

            def log_message(self, format: str, *args: Any) -> None:
                """Tests have their own output."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.port = self._server.server_address[1]
        self.endpoint = f"127.0.0.1:{self.port}"
        self._thread = threading.Thread(target=self._server.serve_forever)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.hold is not None:
            self.hold.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def take(self, path: str, body: bytes) -> bytes:
        if path == "/v1/traces":
            for group in ExportTraceServiceRequest.FromString(body).resource_spans:
                resource = plain(group.resource.attributes)
                for scope in group.scope_spans:
                    assert scope.scope.name == "billaged"
                    for span in scope.spans:
                        self.spans.append(
                            Span(
                                span.name,
                                span.trace_id.hex(),
                                span.span_id.hex(),
                                span.parent_span_id.hex(),
                                span.kind,
                                plain(span.attributes),
                                span.status.code,
                                span.start_time_unix_nano,
                                span.end_time_unix_nano,
                                resource,
                            )
                        )
            return ExportTraceServiceResponse().SerializeToString()
        assert path == "/v1/metrics", path
        for batch in ExportMetricsServiceRequest.FromString(body).resource_metrics:
            self.metrics_resource = plain(batch.resource.attributes)
            for instruments in batch.scope_metrics:
                self.metrics |= {metric.name: metric for metric in instruments.metrics}
        return ExportMetricsServiceResponse().SerializeToString()

    def of(self, name: str) -> list[Span]:
        """The spans with this name."""
        return [span for span in self.spans if span.name == name]

    def numbers(self, name: str) -> dict[tuple[str, ...], float]:
        """A counter's or gauge's values by their labels' values."""
        metric = self.metrics[name]
        points = (metric.sum if metric.HasField("sum") else metric.gauge).data_points
        return {tuple(plain(point.attributes).values()): point.as_double or point.as_int for point in points}
